"""Plots of many candidates side by side: every task of each, differences to a baseline, what a parameter does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .report import Metrics
from .statistics import Difference

_ALPHA = "alpha"


def task_map(summary: Mapping[str, Metrics], order: Sequence[str]) -> Figure:
    """Normalised accuracy of every candidate (rows) on every task (columns), as a heat map with figures."""
    prefix = "accuracy_normalized/"
    tasks = list(dict.fromkeys(key.removeprefix(prefix) for name in order for key in summary[name] if prefix in key))
    shares = np.array([[100 * summary[name].get(prefix + task, np.nan) for task in tasks] for name in order])
    figure = Figure(figsize=(2.6 + 0.75 * len(tasks), 1.2 + 0.3 * len(order)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, of_candidate in enumerate(shares):
        for column, share in enumerate(of_candidate):
            if not np.isnan(share):
                color = "white" if share > 60 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(tasks)), tasks, rotation=35, ha="right")
    axes.set_yticks(range(len(order)), order)
    figure.colorbar(image, label="normalised accuracy (%)")
    return figure


def difference_plot(found: Mapping[str, Difference], baseline: str) -> Figure:
    """Mean accuracy of candidates minus that of the baseline, best first, with 95 % intervals."""
    order = sorted(found, key=lambda name: found[name].mean.value)
    means = [found[name].mean for name in order]
    points = [100 * one.value for one in means]
    errors = [[100 * (one.value - one.low) for one in means], [100 * (one.high - one.value) for one in means]]
    figure = Figure(figsize=(8, 0.9 + 0.3 * len(order)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#888888", lw=1)
    axes.errorbar(points, order, xerr=errors, fmt="o", color="#4878a8", capsize=3)
    axes.set(xlabel=f"mean accuracy minus that of {baseline} (percentage points)")
    axes.margins(y=0.5 / max(len(order), 1))
    axes.grid(axis="x", alpha=0.3)
    return figure


def alpha_curves(
    summary: Mapping[str, Metrics], parameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[tuple[float, str]]]:
    """What is alike but for alpha -> (alpha, candidate) in order; only where there are several alphas.

    Args:
        summary: of the candidates.
        parameters: candidate -> method and parameters.
    """
    families: dict[str, list[tuple[float, str]]] = defaultdict(list)
    scaled = {name: made_by for name in summary if _ALPHA in (made_by := parameters.get(name, {}))}
    for name, made_by in scaled.items():
        same = [other for other in scaled.values() if other["method"] == made_by["method"]]
        told = [key for key in made_by if key != _ALPHA and any(one.get(key) != made_by[key] for one in same)]
        family = " ".join([made_by["method"], *(f"{key}={made_by[key]}" for key in told)])
        families[family].append((float(made_by[_ALPHA]), name))
    return {family: sorted(members) for family, members in families.items() if len(members) > 1}


def alpha_curves_plot(summary: Mapping[str, Metrics], curves: Mapping[str, Sequence[tuple[float, str]]]) -> Figure:
    """Normalised accuracy against alpha, a line for each family of :func:`alpha_curves`."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for family, members in curves.items():
        values = [100 * summary[name]["accuracy_normalized"] for _, name in members]
        axes.plot([alpha for alpha, _ in members], values, marker="o", label=family)
    axes.set(xlabel="alpha", ylabel="normalised accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
