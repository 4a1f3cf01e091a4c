"""TSV-M's two steps, each with and without the other."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from ..alpha import SEARCH
from .accuracy import accuracy_rows, doubts, means, shown_means
from .plots import NORMALISED, new_figure
from .registry import Options, Outcome, study
from .subject import Subject
from .variant import Variant


class Step(NamedTuple):
    """A method of the ablation, and which steps it takes."""

    variant: str
    method: str
    low_rank: bool
    orthogonal: bool


STEPS = [
    Step("neither", "task-arithmetic", False, False),
    Step("low-rank", "low-rank-sum", True, False),
    Step("orthogonal", "orthogonal-sum", False, True),
    Step("both", "tsv-m", True, True),
]


class AblationOptions(Options):
    """At which scales."""

    alpha: list[float | Literal["search"]] = Field(
        [1.0, "search"], min_length=1, description="numbers, or 'search' for each method's best on validation images"
    )


@study("ablation", paper="ablation of TSV-M: low-rank approximation, interference reduction", options=AblationOptions)
def ablation(subject: Subject, options: AblationOptions) -> Outcome:
    """What do low rank and orthogonal singular vectors each add, and both?"""
    wanted = [(chosen, step) for chosen in dict.fromkeys(options.alpha) for step in STEPS]
    variants = [subject.resolved(Variant(step.method, {"alpha": chosen})) for chosen, step in wanted]
    candidates = subject.candidates(variants)
    predictions = subject.measure(candidates)
    table = pd.DataFrame(
        row
        for (chosen, step), variant, one in zip(wanted, variants, candidates, strict=True)
        for row in accuracy_rows(
            predictions, one.name, **step._asdict(), alpha_chosen=chosen, alpha=variant.parameters["alpha"]
        )
    )
    shown = shown_means(table, ["variant", "method", "alpha"])
    shown["alpha"] = [
        f"{alpha:g}" + (" (searched)" if chosen == SEARCH else "")
        for alpha, chosen in zip(means(table)["alpha"], means(table)["alpha_chosen"], strict=True)
    ]
    return Outcome(table, shown, _plot(table), doubts(predictions))


def _plot(table: pd.DataFrame) -> Figure:
    """Bars of the four variants, a group for each way of choosing alpha."""
    figure, (axes,) = new_figure(width=6.5)
    rows = means(table)
    groups = list(dict.fromkeys(rows["alpha_chosen"]))
    width = 0.8 / len(groups)
    for number, chosen in enumerate(groups):
        one = rows[rows["alpha_chosen"] == chosen]
        middle = 100 * one["accuracy_normalized"]
        ends = [middle - 100 * one["accuracy_normalized_low"], 100 * one["accuracy_normalized_high"] - middle]
        places = [index + (number - (len(groups) - 1) / 2) * width for index in range(len(one))]
        label = "alpha chosen on validation images" if chosen == SEARCH else f"alpha = {chosen:g}"
        bars = axes.bar(places, middle, width, yerr=ends, capsize=2, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_xticks(range(len(STEPS)), [f"{step.variant}\n{step.method}" for step in STEPS])
    axes.set(ylabel=NORMALISED)
    figure.legend(loc="outside upper center", ncols=len(groups), frameon=False)
    return figure
