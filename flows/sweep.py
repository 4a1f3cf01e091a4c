"""A sweep: methods × alphas × ranks × subsets of tasks, chosen on validation images, the best evaluated on test.

``tsv sweep FILE`` runs what a YAML file asks for (``python -m flows.sweep FILE`` is the same)::

    suite: lab-8
    methods: [tsv-m, task-arithmetic]
    alphas: [0.6, 0.8, 1.0]
    rank_fractions: [null, 0.25]          # for methods that take it
    task_subsets: [[digits, zodiac], []]    # an empty one stands for all tasks

Everything is cached by content: a candidate that was made or evaluated before, by whatever flow, is not made again, and
a sweep that was killed goes on where it was. Every candidate becomes a run in MLflow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from matplotlib.figure import Figure
from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from tasks.blob import Blob
from tasks.models import Made
from tasks.run_record import SWEEP_TAG
from tasks.track import Tracked, track_candidates
from tasks.views import SWEEPS
from tsvlib.atomic import atomic_write
from tsvlib.cache import describe_work
from tsvlib.checkpoint import open_checkpoint
from tsvlib.cli.options import Printing
from tsvlib.cli.printing import show
from tsvlib.comparison import FORMATS
from tsvlib.comparison import compare as compare_candidates  # Prefect's loader puts flows.compare under the other name
from tsvlib.report import Metrics
from tsvlib.suite import Suite, load_suite

from .choices import SuiteName
from .command import run
from .compare import datasets_of, run_figures
from .evaluate import Measured, measure
from .grid import Grid, load_grid, name_of, only
from .merge import Wanted, fetch_suite, merge_each
from .page import show_plot, show_table
from .runners import CONFIGURED
from .work import added

log = logging.getLogger(__name__)

FOLDER = Path("sweeps")
SweepName = Annotated[str, Field(title="Name", pattern=r"^\w[\w .+-]*$", description="of its folder and its runs")]
_LONGEST_NAME = 80  # of a folder, in characters


class SweepRow(BaseModel):
    """One candidate."""

    model_config = ConfigDict(frozen=True)

    tasks: list[str]
    method: str
    parameters: dict[str, Any]
    digest: str
    """Of the merged weights."""
    validation: float
    """Mean normalised accuracy on validation images."""
    best: bool = False
    """Of those of the same tasks."""
    test: float | None = None
    """Mean normalised accuracy on test images, of the best."""

    @property
    def name(self) -> str:
        """Method and parameters."""
        return name_of((self.method, self.parameters))


@dataclass(frozen=True)
class Swept:
    """All candidates of the same tasks."""

    suite: Suite
    wanted: dict[str, Wanted]
    made: dict[str, Made]
    validation: Measured
    best: str
    test: Measured
    """Of the best alone."""

    def rows(self) -> Iterator[SweepRow]:
        """One a candidate."""
        for name, (method, parameters) in self.wanted.items():
            yield SweepRow(
                tasks=list(self.suite.tasks),
                method=method,
                parameters=parameters,
                digest=self.validation.predictions.origins[name]["digest"],
                validation=self.validation.summary[name]["accuracy_normalized"],
                best=name == self.best,
                test=self.test.summary[name]["accuracy_normalized"] if name == self.best else None,
            )


@flow(name="sweep", task_runner=CONFIGURED)
def sweep(suite: SuiteName, grid: Grid, name: SweepName | None = None) -> list[SweepRow]:
    """Merge and evaluate every candidate of a grid on validation images, and the best on test images.

    Args:
        suite: a packaged suite, or the path of a suite file.
        grid: the candidates.
        name: of the sweep, for its folder below ``sweeps`` and its runs in MLflow; by default the suite's.
    """
    loaded = load_suite(suite)
    name = name or loaded.name
    candidates = {name_of(one): one for one in grid.candidates()}
    subsets = grid.subsets(loaded)
    log.info("sweep %s: %d candidates for each of %d subsets of tasks", name, len(candidates), len(subsets))
    base, checkpoints = fetch_suite(only(loaded, dict.fromkeys(task for subset in subsets for task in subset.tasks)))
    swept = [_sweep_tasks(subset, base, checkpoints, candidates) for subset in subsets]
    rows = [row for one in swept for row in one.rows()]
    results = added(made.work for one in swept for made in one.made.values())["results"]
    log.info("sweep %s: found again %s", name, describe_work({"merged models": results}))
    folders = [_write(one, loaded, FOLDER / name) for one in swept]
    content = (json.dumps([row.model_dump() for row in rows], indent=1) + "\n").encode()
    with atomic_write(FOLDER / name / "results.json") as file:
        file.write(content)
    title = f"Sweep of {loaded.name}: best on validation marked"
    show_table([_shown(row) for row in rows], key="sweep", title=title)
    show_plot(sweep_plot(rows), key="sweep-plot", title=title)
    tag = f"{name}-{hashlib.sha256(content).hexdigest()[:8]}"
    for one, folder in zip(swept, folders, strict=True):
        _track(one, tag, folder)
    return rows


def _sweep_tasks(suite: Suite, base: Blob, checkpoints: dict[str, Blob], candidates: dict[str, Wanted]) -> Swept:
    chosen = {name: checkpoints[name] for name in suite.tasks}
    merged = merge_each(base, chosen, list(candidates.values()), suite.key_policy)
    made = dict(zip(candidates, merged, strict=True))
    files = {name: one.blob for name, one in made.items()}
    validation = measure(suite, base, chosen, files, "validation")
    best = max(files, key=lambda name: validation.summary[name]["accuracy_normalized"])  # the first of equals
    test = measure(suite, base, chosen, {best: files[best]}, "test")
    for name, one in made.items():
        validation.summary[name]["seconds/make"] = one.seconds
    return Swept(suite, candidates, made, validation, best, test)


def _write(swept: Swept, whole: Suite, folder: Path) -> Path:
    """Summaries and answers for 'tsv compare', and the page that it would make."""
    tasks = list(swept.suite.tasks)
    joined = "all-tasks" if set(tasks) == set(whole.tasks) else "+".join(tasks).replace("/", "_")
    if len(joined) > _LONGEST_NAME:
        joined = f"{len(tasks)}-tasks-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"
    place = folder / joined
    for split, measured in {"validation": swept.validation, "test": swept.test}.items():
        measured.predictions.write(place / f"{split}.parquet")
        shown = compare_candidates(whole.name, measured.summary, measured.predictions)
        for suffix in ("json", "html"):
            with atomic_write(place / f"{split}.{suffix}") as file:
                file.write(FORMATS[suffix](shown).encode() + b"\n")
    return place


def _track(swept: Swept, tag: str, folder: Path) -> None:
    """One run a candidate, in an experiment of its own, as figures of validation images do not belong beside others."""
    suite, predictions, summary = swept.suite, swept.validation.predictions, swept.validation.summary
    tasks = " ".join(suite.tasks)
    tracked = []
    for name, row in summary.items():
        is_best = name == swept.best
        method, parameters = swept.wanted.get(name, (name, {}))
        made = swept.made.get(name)
        origin = predictions.origins[name]
        tracked.append(
            Tracked(
                name=name,
                kind=origin["kind"],
                digest=origin["digest"],
                parameters={"method": method, **parameters, "tasks": tasks},
                metrics=row | (_on_test(swept.test.summary[name]) if is_best else {}),
                tags={SWEEP_TAG: tag, "split": predictions.split} | ({"best": "yes"} if is_best else {}),
                provenance=open_checkpoint(made.blob.path).metadata if made else {},
                files={f"sweep/{file.name}": file for file in sorted(folder.iterdir())} if is_best else {},
                figures=run_figures(name, summary, predictions) if is_best else {},
            )
        )
    base = open_checkpoint(suite.base_uri).digest
    track_candidates(suite.name, tracked, base, datasets_of(suite, predictions), suite.name + SWEEPS)


def _on_test(row: Metrics) -> Metrics:
    return {f"test/{key}": value for key, value in row.items() if key.startswith("accuracy")}


def _shown(row: SweepRow) -> dict[str, Any]:
    return {
        "best": "★" if row.best else "",
        "method": row.method,
        **{name: row.parameters.get(name) for name in ("alpha", "rank_fraction")},
        "tasks": len(row.tasks),
        "validation (%)": round(100 * row.validation, 2),
        "test (%)": "" if row.test is None else round(100 * row.test, 2),
        "digest": row.digest[:12],
    }


def sweep_plot(rows: Sequence[SweepRow]) -> Figure:
    """Bars of all candidates, the best ones darker."""
    figure = Figure(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row.name}, {len(row.tasks)} tasks" for row in rows]
    colors = ["#274b6d" if row.best else "#9dbad6" for row in rows]
    bars = axes.barh(range(len(rows)), [100 * row.validation for row in rows], color=colors)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set(xlabel="normalised accuracy on validation images (%)")
    axes.margins(x=0.1)
    return figure


def sweep_command(file: Path, /, *, printing: Printing | None = None) -> None:
    """Merge and measure every candidate of a grid on validation images, and the best on test images.

    Every candidate becomes a run in MLflow, tables and pages appear in sweeps/NAME. Run it again to go on after a kill.

    Args:
        file: a YAML file that names a suite and lists methods, alphas, rank_fractions and task_subsets.
    """
    printing = printing or Printing()

    def main() -> None:
        if printing.quiet:
            logging.getLogger("flows").setLevel(logging.WARNING)
        rows = sweep(suite, grid, file.stem)
        table = pd.DataFrame([_shown(row) for row in rows])
        text = f"{table.to_markdown(index=False, disable_numparse=True)}\n\nMore in {FOLDER / file.stem}."
        show({"candidates": [row.model_dump() for row in rows]}, text, printing)

    suite, grid = load_grid(file)
    run(main)


if __name__ == "__main__":
    run(lambda: sweep_command(Path(sys.argv[1])))
