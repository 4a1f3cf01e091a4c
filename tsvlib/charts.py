"""Plots of one candidate among the others: radar over the tasks, storage against accuracy, confusion of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from .candidate import FINE_TUNED, ZERO_SHOT
from .evaluate import NO_ANSWER
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


def confusion_plot(predictions: Predictions, candidate: str, task: str) -> Figure:
    """The confusion of classes as a heat map, each row in per cent of its class."""
    counts, classes = confusion(predictions, candidate, task), predictions.classes[task]
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3 + 0.22 * min(len(classes), _MOST_NAMED)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if len(classes) <= _MOST_NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.set(xlabel="taken for", ylabel="is", title=f"{candidate} on {task} (% of each class)")
    figure.colorbar(image, shrink=0.8)
    return figure
