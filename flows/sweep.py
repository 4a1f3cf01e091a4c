"""A sweep: methods × alphas × ranks × subsets of tasks, chosen on validation images, the best evaluated on test.

``python -m flows.sweep FILE`` runs what a YAML file asks for::

    suite: lab-8
    methods: [tsv-m, task-arithmetic]
    alphas: [0.6, 0.8, 1.0]
    rank_fractions: [null, 0.25]          # for methods that take it
    task_subsets: [[digits, math], []]    # an empty one stands for all tasks

Everything is cached by content: a candidate that was made or evaluated before, by whatever flow, is not made again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.figure import Figure
from prefect import flow
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.blob import Blob
from tasks.evaluate import evaluate_file, evaluate_fine_tuned, read_answers
from tasks.fetch import fetch_images, fetch_model
from tasks.models import Answered, Made
from tsvlib.checkpoint import atomic_write
from tsvlib.errors import SuiteError
from tsvlib.methods import get_method
from tsvlib.suite import Suite, load_suite

from .choices import MethodName, SuiteName
from .command import run
from .merge import Wanted, fetch_suite, merge_each
from .page import show_plot, show_table
from .runners import CONFIGURED, Call, side_by_side


class Grid(BaseModel):
    """Candidates: every combination of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[MethodName] = Field(["tsv-m"], min_length=1)
    alphas: list[float] = Field([1.0], min_length=1, description="scales of the merged delta")
    rank_fractions: list[float | None] = Field(
        [None], min_length=1, description="share of min(m, n) kept of each task, for methods that take it"
    )
    task_subsets: list[list[str]] = Field(
        [[]], min_length=1, description="which tasks are merged; an empty list stands for all"
    )

    def candidates(self) -> list[Wanted]:
        """(method, parameters) of each, known to be valid.

        Raises:
            MethodError: a value that a method does not take.
        """
        found: list[Wanted] = []
        for method in self.methods:
            parameters = get_method(method).parameters
            by_rank = "rank_fraction" in parameters.model_fields
            for rank in self.rank_fractions if by_rank else [None]:
                for alpha in self.alphas:
                    wanted = {"alpha": alpha} | ({"rank_fraction": rank} if rank is not None else {})
                    get_method(method).parse(wanted)
                    found.append((method, wanted))
        return found


class SweepRow(BaseModel):
    """One candidate."""

    model_config = ConfigDict(frozen=True)

    tasks: list[str]
    method: str
    parameters: dict[str, Any]
    digest: str
    validation: float
    """Mean normalised accuracy on validation images."""
    best: bool = False
    """Of those of the same tasks."""
    test: float | None = None
    """Mean normalised accuracy on test images, of the best."""

    @property
    def name(self) -> str:
        """Method and parameters."""
        return " ".join([self.method, *(f"{key}={value:g}" for key, value in self.parameters.items())])


@flow(name="sweep", task_runner=CONFIGURED)
def sweep(suite: SuiteName, grid: Grid) -> list[SweepRow]:
    """Merge and evaluate every candidate of a grid on validation images, and the best on test images.

    Args:
        suite: a packaged suite, or the path of a suite file.
        grid: the candidates.
    """
    loaded = load_suite(suite)
    subsets = [_subset(loaded, names) for names in grid.task_subsets]
    candidates = grid.candidates()
    base, checkpoints = fetch_suite(loaded)
    rows = [row for one in subsets for row in _sweep_tasks(one, base, checkpoints, candidates)]
    title = f"Sweep of {loaded.name}: best on validation marked"
    show_table([_shown(row) for row in rows], key="sweep", title=title)
    show_plot(sweep_plot(rows), key="sweep-plot", title=title)
    with atomic_write(Path("sweeps") / f"{loaded.name}.json") as file:
        file.write((json.dumps([row.model_dump() for row in rows], indent=1) + "\n").encode())
    return rows


def _subset(suite: Suite, names: Sequence[str]) -> Suite:
    tasks = {name: suite.task(name) for name in names or suite.tasks}
    return suite.model_copy(update={"tasks": tasks}).at(suite.folder)


def _sweep_tasks(
    suite: Suite, base: Blob, checkpoints: dict[str, Blob], candidates: Sequence[Wanted]
) -> list[SweepRow]:
    chosen = {name: checkpoints[name] for name in suite.tasks}
    made = merge_each(base, chosen, candidates)
    validation = _normalised(suite, base, chosen, made, "validation")
    best = max(range(len(made)), key=lambda index: (validation[index], -index))
    (test,) = _normalised(suite, base, chosen, [made[best]], "test")
    return [
        SweepRow(
            tasks=list(suite.tasks), method=method, parameters=parameters, digest=made[index].blob.digest,
            validation=validation[index], best=index == best, test=test if index == best else None,
        )
        for index, (method, parameters) in enumerate(candidates)
    ]  # fmt: skip


def _normalised(suite: Suite, base: Blob, chosen: dict[str, Blob], made: Sequence[Made], split: str) -> list[float]:
    """Mean accuracy of merged checkpoints, each task's relative to its own fine-tune."""
    images, model = fetch_images(suite, split), fetch_model(suite)
    shared = {"suite": suite, "model": model, "images": images, "split": split}
    calls: list[Call] = [(evaluate_fine_tuned, shared | {"checkpoints": chosen})]
    for one in made:
        calls.append((evaluate_file, shared | {"name": one.blob.digest[:12], "file": one.blob, "base": base}))
    reference, *found = [_accuracies(one) for one in side_by_side(calls, f"evaluated on {split} images")]
    return [fmean(one[task] / reference[task] for task in chosen) for one in found]


def _accuracies(answered: Answered) -> dict[str, float]:
    answers, labels = read_answers(answered)
    return {task: float((answers[task] == labels[task]).mean()) for task in answers}


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


def load_sweep(file: Path) -> tuple[str, Grid]:
    """The suite and the grid of a YAML file.

    Raises:
        SuiteError: the file is missing, or an entry of it is wrong; each is named.
    """
    if not file.is_file():
        raise SuiteError(f"{file}: no such file. It names a suite, and what to sweep over.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return str(content.pop("suite")), Grid.model_validate(content)
    except (yaml.YAMLError, AttributeError, KeyError) as error:
        raise SuiteError(
            f"{file}: is no sweep ({error!r}): write 'suite: NAME' and lists such as 'methods'."
        ) from error
    except ValidationError as error:
        lines = [f"{file}: {'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}." for e in error.errors()]
        raise SuiteError("\n".join(lines)) from error


if __name__ == "__main__":
    run(lambda: sweep(*load_sweep(Path(sys.argv[1]))))
