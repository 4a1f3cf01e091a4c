"""Accuracy against the number of tasks."""

from __future__ import annotations

import pandas as pd
from pydantic import Field

from ..candidate import FINE_TUNED, ZERO_SHOT
from ..errors import StudyError
from .accuracy import accuracy_rows, doubts, shown_side_by_side
from .plots import draw_means, new_figure
from .registry import Options, Outcome, study
from .subject import Subject
from .variant import parse_variants


class TasksOptions(Options):
    """Which methods, on how many tasks."""

    method: list[str] = Field(
        ["average", "task-arithmetic,alpha=search", "tsv-m"],
        min_length=1,
        description="methods; 'search' is for the best on validation images",
    )
    size: list[int] | None = Field(
        None, min_length=1, description="numbers of tasks, the suite's first ones; by default 2, 4, 8 … and all"
    )


@study("tasks", paper="Tables 2 and 3 (8, 14 and 20 tasks)", options=TasksOptions)
def tasks(subject: Subject, options: TasksOptions) -> Outcome:
    """How do methods hold up as more tasks are merged?"""
    variants = parse_variants(options.method)
    rows, measured = [], []
    for size in _sizes(len(subject.suite.tasks), options.size, subject.suite.name):
        part = subject.first(size)
        resolved = [part.resolved(one) for one in variants]
        candidates = part.candidates(resolved)
        predictions = part.measure(candidates)
        measured.append(predictions)
        for reference in (ZERO_SHOT, FINE_TUNED):
            rows += accuracy_rows(predictions, reference, tasks=size, method=reference, parameters="")
        for variant, used, one in zip(variants, resolved, candidates, strict=True):
            chosen = used.name.partition(",")[2]
            rows += accuracy_rows(predictions, one.name, tasks=size, method=variant.name, parameters=chosen)
    table = pd.DataFrame(rows)
    figure, (axes,) = new_figure(width=6.5)
    draw_means(axes, table, "tasks", "method", [ZERO_SHOT, *(one.name for one in variants)])
    sizes = sorted(set(table["tasks"]))
    axes.set_xticks(sizes)
    axes.set(xlabel="tasks merged and evaluated")
    return Outcome(table, shown_side_by_side(table, "tasks", "method"), figure, doubts(*measured))


def _sizes(count: int, wanted: list[int] | None, suite: str) -> list[int]:
    if wanted is None:
        powers = [2**step for step in range(1, count.bit_length()) if 2**step < count]
        return [*powers, count]
    for size in wanted:
        if not 1 <= size <= count:
            raise StudyError(f"size = {size}: suite {suite!r} has {count} tasks; give numbers from 1 to {count}.")
    return sorted(set(wanted))
