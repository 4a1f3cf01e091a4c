"""Accuracy against alpha, the scale of the merged delta."""

from __future__ import annotations

from pydantic import Field

from .accuracy import doubts, measured_sweep, shown_side_by_side
from .plots import draw_means, mark, new_figure
from .registry import Options, Outcome, study
from .subject import Subject
from .variant import parse_swept

_ALPHAS = [*(step / 10 for step in range(1, 11)), 1.2, 1.4, 1.6, 1.8, 2.0]


class AlphaOptions(Options):
    """Which methods, at which scales."""

    method: list[str] = Field(["tsv-m", "task-arithmetic"], min_length=1, description="merge methods")
    alpha: list[float] = Field(_ALPHAS, min_length=1, description="scales of the merged delta")


@study("alpha", paper="Fig. 7", options=AlphaOptions)
def alpha(subject: Subject, options: AlphaOptions) -> Outcome:
    """How much does the scale of the merged delta matter, and is 1 a good one?"""
    variants = parse_swept(options.method, "alpha")
    scales = sorted(set(options.alpha))
    table, predictions = measured_sweep(subject, variants, "alpha", scales)
    figure, (axes,) = new_figure(width=6.5)
    draw_means(axes, table, "alpha", "method")
    axes.set(xlabel="alpha")
    mark(axes, 1.0, "the paper's")
    return Outcome(table, shown_side_by_side(table, "alpha", "method"), figure, doubts(predictions))
