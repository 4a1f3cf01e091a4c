"""Accuracies of a study's candidates as rows of its table, with 95 % intervals, and as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from ..candidate import FINE_TUNED
from ..guard import Finding
from ..predictions import Predictions
from ..statistics import Interval, accuracy_with_intervals
from .subject import Subject
from .variant import Variant

MEAN = "mean"
"""Stands for the mean over tasks in the column ``task``."""
FIGURES = {"accuracy": "accuracy", "accuracy_normalized": "normalised"}


def accuracy_rows(predictions: Predictions, candidate: str, /, **about: Any) -> list[dict[str, Any]]:
    """One row a task, and one for the mean over tasks: accuracy and normalised accuracy with their intervals.

    Args:
        predictions: of all candidates, the fine-tuned models among them.
        candidate: whose accuracy.
        about: further columns, which come first.
    """
    found = accuracy_with_intervals(predictions.correct(candidate), predictions.correct(FINE_TUNED))
    absolute = found.tasks | {MEAN: found.mean}
    normalised = found.normalised_tasks | {MEAN: found.normalised_mean}
    return [
        {
            **about,
            "task": task,
            **_columns("accuracy", one),
            **_columns("accuracy_normalized", normalised[task]),
        }
        for task, one in absolute.items()
    ]


def measured_sweep(
    subject: Subject, variants: Sequence[Variant], parameter: str, values: Sequence[float]
) -> tuple[pd.DataFrame, Predictions]:
    """The rows of every variant at every value of one parameter, with columns ``method`` and that parameter."""
    wanted = [(one, value) for one in variants for value in values]
    candidates = subject.candidates(one.given(**{parameter: value}) for one, value in wanted)
    predictions = subject.measure(candidates)
    table = pd.DataFrame(
        row
        for (variant, value), one in zip(wanted, candidates, strict=True)
        for row in accuracy_rows(predictions, one.name, **{"method": variant.name, parameter: value})
    )
    return table, predictions


def means(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the means over tasks."""
    return table[table["task"] == MEAN]


def shown_means(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The means over tasks to be read: accuracies in per cent ± half their interval, beside some columns."""
    rows = means(table)
    text = rows[list(columns)].copy()
    for name, heading in FIGURES.items():
        text[heading] = _in_words(rows, name)
    return text.reset_index(drop=True)


def shown_side_by_side(table: pd.DataFrame, row: str, column: str) -> pd.DataFrame:
    """The means' normalised accuracies in per cent ± half their interval, a row for each value of one column."""
    rows = means(table)
    text = rows[[row, column]].assign(words=_in_words(rows, "accuracy_normalized"))
    order = list(dict.fromkeys(rows[column]))
    return text.pivot(index=row, columns=column, values="words")[order].fillna("").reset_index().rename_axis(columns="")


def doubts(*predictions: Predictions) -> list[Finding]:
    """What is wrong with images or fine-tunes, each told once; odd candidates are what studies are about."""
    found: Iterable[Finding] = (one for each in predictions for one in each.findings())
    return list({one.message: one for one in found if one.candidate in ("", FINE_TUNED)}.values())


def _columns(name: str, one: Interval) -> dict[str, float]:
    return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}


def _in_words(rows: pd.DataFrame, name: str) -> list[str]:
    halves = (rows[f"{name}_high"] - rows[f"{name}_low"]) / 2
    return [f"{100 * value:.1f} ± {100 * half:.1f}" for value, half in zip(rows[name], halves, strict=True)]
