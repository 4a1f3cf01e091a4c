"""Plots of one candidate, and the tables behind them: radar over the tasks, storage against accuracy, confusion of
classes, interference and spectra of the matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .answers import NO_ANSWER
from .candidate import FINE_TUNED, ZERO_SHOT
from .kept import KeptMatrix
from .predictions import Predictions
from .report import Metrics

_MOST_NAMED = 30  # classes that a confusion plot has room to name


def radar_plot(name: str, summary: Mapping[str, Metrics]) -> Figure:
    """Accuracy of one candidate on every task, between the base and the fine-tuned models."""
    tasks = [key.removeprefix("accuracy/") for key in summary[name] if key.startswith("accuracy/")]
    angles = [2 * math.pi * i / len(tasks) for i in range(len(tasks) + 1)]
    figure = Figure(figsize=(5.4, 5), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    others = [other for other in (ZERO_SHOT, FINE_TUNED) if other in summary and other != name]
    for drawn, style in [*((other, "--") for other in others), (name, "-")]:
        values = [100 * summary[drawn][f"accuracy/{task}"] for task in tasks]
        axes.plot(angles, [*values, values[0]], style, label=drawn, lw=2 if drawn == name else 1)
        if drawn == name:
            axes.fill(angles, [*values, values[0]], alpha=0.2, color=axes.lines[-1].get_color())
    axes.set_xticks(angles[:-1], tasks)
    axes.set_ylim(0, 100)
    axes.set_title(f"{name}: accuracy (%)")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def storage_plot(summary: Mapping[str, Metrics], name: str | None = None) -> Figure:
    """Normalised accuracy against bytes, in dense encoders, of all candidates; one of them marked."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for other, row in summary.items():
        color = "#c44e52" if other == name else "#4878a8"
        axes.plot(row["bytes_ratio"], 100 * row["accuracy_normalized"], "o", color=color, ms=8 if other == name else 5)
    if len(summary) <= _MOST_NAMED:
        for other, row in summary.items():
            place = (row["bytes_ratio"], 100 * row["accuracy_normalized"])
            axes.annotate(other, place, xytext=(6, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel="bytes (dense encoders)", ylabel="normalised accuracy (%)", xscale="log")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    return figure


def confusion(predictions: Predictions, candidate: str, task: str) -> np.ndarray:
    """How many images of each class were taken for each, int64 (true classes, answers); undecoded ones left out."""
    labels, answers = predictions.labels[predictions.split][task], predictions.answers[predictions.split][candidate]
    given = answers[task] != NO_ANSWER
    count = len(predictions.classes[task])
    places = labels[given] * count + answers[task][given]
    return np.bincount(places, minlength=count * count).reshape(count, count)


def confusion_table(predictions: Predictions, candidate: str, task: str) -> pd.DataFrame:
    """The same with names: a row for each true class, a column for each answer."""
    classes = predictions.classes[task]
    return pd.DataFrame(confusion(predictions, candidate, task), index=pd.Index(classes, name="is"), columns=classes)


def confusion_plot(predictions: Predictions, candidate: str, task: str) -> Figure:
    """The confusion of classes as a heat map, each row in shares of its class."""
    counts, classes = confusion(predictions, candidate, task), predictions.classes[task]
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3 + 0.22 * min(len(classes), _MOST_NAMED)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if len(classes) <= _MOST_NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.set(xlabel="taken for", ylabel="is", title=f"{candidate} on {task} (of each class: white none, dark all)")
    return figure


def kept_table(kept: Sequence[KeptMatrix]) -> pd.DataFrame:
    """One row a matrix: parameter, layer, kind, shape, interference, mean energy, and rank and energy of each task."""
    return pd.DataFrame(
        {
            "parameter": one.key,
            "layer": one.place.layer,
            "kind": one.place.kind,
            "shape": " × ".join(map(str, one.shape)),
            "sti": one.sti,
            "energy": fmean(one.energies.values()),
            **{f"rank/{task}": rank for task, rank in one.ranks.items()},
            **{f"energy/{task}": share for task, share in one.energies.items()},
        }
        for one in kept
    ).astype({"layer": "Int64"})


def interference_plot(name: str, kept: Sequence[KeptMatrix]) -> Figure:
    """Singular task interference as a heat map, layer by layer and kind of matrix by kind."""
    figure = Figure(figsize=_size(kept), layout="constrained")
    axes = figure.subplots()
    _heat_map(axes, kept, lambda one: math.nan if one.sti is None else one.sti, "singular task interference (STI)")
    axes.set_title(f"{name}: interference of the tasks before decorrelation")
    return figure


def kept_plot(name: str, kept: Sequence[KeptMatrix]) -> Figure:
    """Singular values as far as they are kept, a line for each kind of matrix; and the share of squared norm kept."""
    width, height = _size(kept)
    figure = Figure(figsize=(width + 4.5, max(height, 3.2)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(4.5, width))
    kinds: dict[str, list[KeptMatrix]] = {}
    for one in kept:
        kinds.setdefault(one.place.kind, []).append(one)
    for kind, same in kinds.items():
        places = sorted(set.intersection(*(set(one.spectrum) for one in same)))
        left.plot(places, [fmean(one.spectrum[i] for one in same) for i in places], marker=".", label=kind)
    left.set(xlabel="i", ylabel="s_i / s_1, mean of tasks and layers", yscale="log", title=f"{name}: spectrum kept")
    left.legend(fontsize=7)
    left.grid(alpha=0.3)
    _heat_map(right, kept, lambda one: 100 * fmean(one.energies.values()), "squared norm kept (%)")
    return figure


def _size(kept: Sequence[KeptMatrix]) -> tuple[float, float]:
    places = [one.place for one in kept]
    layers, kinds = {place.layer for place in places}, {place.kind for place in places}
    return 3.4 + 0.42 * len(layers), 1.6 + 0.34 * len(kinds)


def _heat_map(axes: Axes, kept: Sequence[KeptMatrix], value: Callable[[KeptMatrix], float], title: str) -> None:
    """A row for each kind of matrix, a column for each layer; the first one is of what stands in none."""
    layers = sorted({one.place.layer for one in kept}, key=lambda layer: -1 if layer is None else layer)
    kinds = list(dict.fromkeys(one.place.kind for one in kept))
    cells = np.ma.masked_all((len(kinds), len(layers)))
    for one in kept:
        cells[kinds.index(one.place.kind), layers.index(one.place.layer)] = value(one)
    image = axes.imshow(cells, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(layers)), ["–" if layer is None else str(layer) for layer in layers])
    axes.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axes.set_xlabel("layer")
    if axes.figure is not None:
        axes.figure.colorbar(image, ax=axes, label=title)
