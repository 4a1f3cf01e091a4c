"""What the lab shows: its three suites over several seeds, on test images that nothing was chosen on.

``tsv lab measure`` makes every task's pictures and fine-tune once a seed, then merges and evaluates the first 8, the
first 14 and all 20 of them: the suites lab-8, lab-14 and lab-20. It writes measured.csv, measured.svg and tables.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from matplotlib.figure import Figure

from tsvlib.atomic import atomic_write
from tsvlib.cache import Cache
from tsvlib.candidate import FINE_TUNED, ZERO_SHOT
from tsvlib.progress import Progress
from tsvlib.recipe import Recipe
from tsvlib.studies import Outcome, Subject, get_study
from tsvlib.studies.accuracy import means
from tsvlib.studies.plots import NORMALISED, new_figure
from tsvlib.studies.writing import PlotFormat, files_of, write
from tsvlib.suite import load_suite

from .make import LAB, LAB_RECIPE, SEED, make_lab

SIZES = (8, 14, 20)  # tasks of lab-8, lab-14 and lab-20; each suite holds the first ones of the next
METHODS = ("low-rank-sum", "average", "orthogonal-sum", "task-arithmetic,alpha=search", "tsv-m", "tsv-c")
NAME = "measured"
TABLES = "tables.md"
FORMATS: tuple[PlotFormat, ...] = ("svg",)
FILES = (*files_of(NAME, FORMATS), TABLES)


def measure_lab(
    folder: Path,
    seeds: int,
    cache: Cache,
    phase: Callable[[str], AbstractContextManager[Progress | None]],
    sizes: Sequence[int] = SIZES,
    recipe: Recipe = LAB_RECIPE,
) -> Outcome:
    """Measure the three suites on test images.

    Args:
        folder: where pictures and fine-tunes go, a subfolder a seed; what is there already stays.
        seeds: how many; seed s draws the pictures from ``SEED + s``, and their order in training from s.
        cache: of factors, merged matrices and answers.
        phase: opens what tells of the progress of one phase of the work, by its title.
        sizes: numbers of tasks, lab-20's first ones.
        recipe: of the fine-tuning; its seed is set.

    Returns:
        A table with the columns of the study ``tasks``, and ``seed``; its means over seeds to be read; a plot.
    """
    suite, study = load_suite("lab-20"), get_study("tasks")
    options = study.parse({"method": list(METHODS), "size": list(sizes)})
    tasks = list(suite.tasks)[: max(sizes)]
    found = []
    for seed in range(seeds):
        here = folder / f"seed-{seed}"
        seeded = recipe.model_copy(update={"seed": seed})
        with phase(f"fine-tune, seed {seed}") as progress:
            make_lab(tasks, here / LAB, seeded, SEED + seed, progress=progress)
        with TemporaryDirectory(prefix="tsv-lab-") as archives:
            outcome = study.function(Subject(suite.at(here), cache, Path(archives), phase=phase), options)
        found.append(outcome.table.assign(seed=seed))
    table = pd.concat(found, ignore_index=True)
    return Outcome(table, summary(table), _plot(table))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Of every suite and method: accuracy and normalised accuracy (shares of 1), means over tasks, then over seeds.

    Columns ``tasks``, ``method``, ``accuracy``, ``accuracy_normalized``; ``seed 0`` … with the normalised one of each.
    """
    rows = means(table)
    keys = ["tasks", "method"]
    average = rows.groupby(keys, sort=False)[["accuracy", "accuracy_normalized"]].mean()
    each = rows.pivot(index=keys, columns="seed", values="accuracy_normalized").add_prefix("seed ")
    order = [ZERO_SHOT, *METHODS, FINE_TUNED]
    joined = average.join(each).reset_index()
    return joined.sort_values(keys, key=lambda column: column if column.name == "tasks" else column.map(order.index))


def write_measured(folder: Path, outcome: Outcome) -> None:
    """Write what was measured; the same outcome gives the same bytes."""
    write(folder, NAME, outcome, FORMATS)
    with atomic_write(folder / TABLES) as file:
        file.write(tables(outcome.shown).encode())


def tables(shown: pd.DataFrame) -> str:
    """A Markdown table for each suite, in per cent."""
    parts = []
    for size, rows in shown.groupby("tasks"):
        figures = rows.drop(columns="tasks").rename(columns={"accuracy_normalized": "normalised"}).set_index("method")
        text = (100 * figures).map("{:.1f}".format).reset_index().to_markdown(index=False, disable_numparse=True)
        parts.append(f"**lab-{size}**\n\n{text}\n")
    return "\n".join(parts)


def _plot(table: pd.DataFrame) -> Figure:
    """A panel a suite: the mean over seeds as a bar, each seed as a dot."""
    shown = summary(table)
    shown = shown[shown["method"] != FINE_TUNED]
    seeds = shown.columns[shown.columns.str.startswith("seed ")]
    suites = list(shown.groupby("tasks"))
    figure, panels = new_figure(columns=len(suites), width=4.2, height=3.4)
    for axes, (size, rows) in zip(panels, suites, strict=True):
        axes.barh(rows["method"], 100 * rows["accuracy_normalized"], color="#8fb7d9")
        for seed in seeds:
            axes.plot(100 * rows[seed], rows["method"], "k.", ms=5)
        axes.set(title=f"lab-{size}", xlim=(0, 100), xlabel=NORMALISED)
        if axes is not panels[0]:
            axes.set_yticklabels([])
    return figure
