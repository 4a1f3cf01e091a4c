"""What the plots of studies have in common."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .accuracy import means

NORMALISED = "normalised accuracy (%)"
_MARKS = "osD^vPX*"


def new_figure(columns: int = 1, width: float = 6.0, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side.

    Args:
        columns: panels.
        width: of a panel, in inches.
        height: of the figure, in inches.
    """
    figure = Figure(figsize=(width * columns, height), layout="constrained")
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, panels


def draw_means(axes: Axes, table: pd.DataFrame, x: str, by: str, names: Iterable[str] | None = None) -> None:
    """Mean normalised accuracy with its intervals against a column, a line for each value of another one."""
    rows = means(table)
    for number, name in enumerate(names or dict.fromkeys(rows[by])):
        line = rows[rows[by] == name].sort_values(x)
        middle = 100 * line["accuracy_normalized"]
        ends = [middle - 100 * line["accuracy_normalized_low"], 100 * line["accuracy_normalized_high"] - middle]
        axes.errorbar(
            line[x], middle, yerr=ends, label=name, marker=_MARKS[number % len(_MARKS)], ms=5, lw=1.6, capsize=2
        )
    axes.set_ylabel(NORMALISED)
    axes.legend(frameon=False)


def mark(axes: Axes, x: float, words: str) -> None:
    """A dashed vertical line with words at its foot."""
    axes.axvline(x, color="grey", ls="--", lw=1)
    axes.annotate(words, (x, 0.02), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
                  fontsize=8, color="grey")  # fmt: skip
