"""Accuracy against kept rank."""

from __future__ import annotations

import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from pydantic import Field

from .accuracy import MEAN, doubts, measured_sweep, shown_side_by_side
from .plots import NORMALISED, draw_means, mark, new_figure
from .registry import Options, Outcome, study
from .shares import RANK, checked_shares
from .stored import TSV_C
from .subject import Subject
from .variant import parse_swept

_SHARES = [2.0**-step for step in range(7)]


class RankOptions(Options):
    """Which methods, at which ranks."""

    method: list[str] = Field([TSV_C, "tsv-m"], min_length=1, description="methods that keep a rank")
    rank_fraction: list[float] | None = Field(
        None, min_length=1, description="shares of min(m, n) kept of each task; by default 1 … 1/64, and 1 / tasks"
    )


@study("rank", paper="Sec. 3 (low-rank task matrices) and Fig. 17", options=RankOptions)
def rank(subject: Subject, options: RankOptions) -> Outcome:
    """How much of each task matrix's rank is needed, to keep every task and to merge them?"""
    variants = parse_swept(options.method, RANK)
    paper = 1 / len(subject.tasks)
    shares = checked_shares(options.rank_fraction or [*_SHARES, paper])
    table, predictions = measured_sweep(subject, variants, RANK, shares)
    shown = shown_side_by_side(table, RANK, "method")
    shown[RANK] = [f"{share:.3g}" for share in shown[RANK]]
    return Outcome(table, shown, _plot(table, paper), doubts(predictions))


def _plot(table: pd.DataFrame, paper: float) -> Figure:
    """The means of all methods, and each task of the first one."""
    figure, (left, right) = new_figure(2)
    draw_means(left, table, RANK, "method")
    first = table["method"].iloc[0]
    rows = table[(table["method"] == first) & (table["task"] != MEAN)]
    tasks = list(dict.fromkeys(rows["task"]))
    for number, task in enumerate(tasks):
        line = rows[rows["task"] == task].sort_values(RANK)
        right.plot(
            line[RANK],
            100 * line["accuracy_normalized"],
            marker=".",
            lw=1.2,
            color=colormaps["tab20"](number % 20),
            label=task,
        )
    right.set(ylabel=NORMALISED, title=f"{first}, each task")
    left.set(title="mean over tasks")
    right.legend(frameon=False, fontsize=7, ncols=1 + len(tasks) // 10)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
        axes.set_xlabel("singular triplets kept of each matrix")
        mark(axes, paper, "1 / tasks")
    return figure
