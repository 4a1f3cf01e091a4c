"""Interference between every two tasks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ..errors import StudyError
from ..interference import pairwise_interference_of
from .interference import InterferenceOptions, kept_factors, triplets_of
from .registry import Outcome, study
from .subject import Subject


@study("pairs", paper="Eq. 6 of two tasks at a time; no figure of it", options=InterferenceOptions, on_images=False)
def pairs(subject: Subject, options: InterferenceOptions) -> Outcome:
    """Which tasks interfere with which?"""
    names = sorted(subject.tasks)
    if len(names) < 2:
        raise StudyError(f"study 'pairs': suite {subject.suite.name!r} has one task; it takes two to interfere.")
    total = torch.zeros(len(names), len(names))
    for factors in kept_factors(subject, options.rank_fraction):
        total += pairwise_interference_of(triplets_of(factors), options.norm)
    table = pd.DataFrame(
        {"task": names[i], "other": names[j], "norm": options.norm, "sti": float(total[i, j])}
        for i, j in combinations(range(len(names)), 2)
    )
    order = [name for name in subject.tasks]
    square = pd.DataFrame(total.numpy(), index=names, columns=names).loc[order, order]
    shown = square.map(lambda value: f"{value:,.0f}" if value else "").rename_axis("").reset_index()
    return Outcome(table, shown, _plot(square))


def _plot(square: pd.DataFrame) -> Figure:
    """A heat map of the symmetric matrix."""
    count = len(square)
    side = 2.4 + 0.42 * count
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    values = np.where(np.eye(count, dtype=bool), np.nan, square.to_numpy())
    image = axes.imshow(values, cmap="viridis")
    axes.set_xticks(range(count), square.columns, rotation=60, ha="right")
    axes.set_yticks(range(count), square.index)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for i, j in np.argwhere(~np.isnan(values)):
        color = "white" if values[i, j] < middle else "black"
        axes.text(j, i, f"{values[i, j]:.3g}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, shrink=0.8, label="interference of the two tasks")
    return figure
