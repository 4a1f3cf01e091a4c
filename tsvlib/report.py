"""Comparing candidates: the metrics of each under the contract's names, as a table and as plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from .candidate import FINE_TUNED, ZERO_SHOT
from .errors import DataError
from .evaluate import mean, normalised

Metrics = dict[str, float]

matplotlib.rcParams["svg.hashsalt"] = "tsvlib"  # the same plot gives the same file


def metrics(
    accuracies: Mapping[str, float], reference: Mapping[str, float], size: int, dense_size: int, **others: float
) -> Metrics:
    """The metrics of one candidate.

    Args:
        accuracies: task -> accuracy (0 to 1).
        reference: the same of the fine-tuned models, measured by the same code.
        size: bytes of the candidate on disk.
        dense_size: bytes of one dense encoder on disk.
        others: further metrics, such as ``seconds/make``.
    """
    ratios = normalised(accuracies, reference)
    return {
        "accuracy": mean(accuracies),  # first: MLflow's comparison page shows the first metric
        "accuracy_normalized": mean(ratios),
        **{f"accuracy/{task}": accuracy for task, accuracy in accuracies.items()},
        **{f"accuracy_normalized/{task}": ratio for task, ratio in ratios.items()},
        "bytes": size,
        "bytes_ratio": size / dense_size,
        **others,
    }


def read_summary(file: Path) -> dict[str, Metrics]:
    """Candidate -> metrics, as the evaluation wrote them.

    Raises:
        DataError: the file is missing or no summary.
    """
    if not file.is_file():
        raise DataError(f"{file}: no summary there. Evaluate first: 'dvc repro', or 'tsv evaluate --out {file}'.")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        return {name: {key: float(value) for key, value in row.items()} for name, row in summary.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file}: is no summary of candidates: {error}") from error


def comparison(summary: Mapping[str, Metrics]) -> pd.DataFrame:
    """One row a candidate, best last, the references first and last: accuracy of each task and the means in per cent,
    megabytes, ratio to a dense encoder, seconds to make."""
    rows = {}
    for name, row in summary.items():
        tasks = {
            key.removeprefix("accuracy/"): 100 * value for key, value in row.items() if key.startswith("accuracy/")
        }
        rows[name] = {
            **tasks,
            "mean": 100 * row["accuracy"],
            "normalised": 100 * row["accuracy_normalized"],
            "MB": row["bytes"] / 1e6,
            "ratio": row["bytes_ratio"],
            "seconds": row.get("seconds/make", float("nan")),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    order = sorted(rows, key=lambda name: (name != ZERO_SHOT, name == FINE_TUNED, rows[name]["mean"]))
    return table.loc[order]


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """The comparison with every figure as text, to the digits that mean something."""
    digits = {"MB": 2, "ratio": 2, "seconds": 2}
    return table.apply(
        lambda column: column.map(lambda v: "" if pd.isna(v) else f"{v:.{digits.get(str(column.name), 1)}f}")
    )


def accuracy_plot(name: str, row: Metrics, reference: Metrics) -> Figure:
    """Bars of one candidate's accuracy per task, with marks for the fine-tuned models'."""
    tasks = [key.removeprefix("accuracy/") for key in row if key.startswith("accuracy/")]
    figure = Figure(figsize=(1.5 + 0.75 * len(tasks), 3.6), layout="constrained")
    axes = figure.subplots()
    axes.bar(tasks, [100 * row[f"accuracy/{task}"] for task in tasks], color="#4878a8", label=name)
    axes.plot(tasks, [100 * reference[f"accuracy/{task}"] for task in tasks], "_k", ms=26, mew=2, label=FINE_TUNED)
    axes.set(ylabel="accuracy (%)", ylim=(0, 104), title=f"{name}: mean {100 * row['accuracy']:.1f} %")
    axes.tick_params(axis="x", rotation=35)
    axes.legend(loc="lower right")
    return figure


def comparison_plot(summary: Mapping[str, Metrics]) -> Figure:
    """Normalised accuracy of all candidates, beside the bytes each takes."""
    order = list(comparison(summary).index)
    figure = Figure(figsize=(9, 0.9 + 0.42 * len(order)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, title, scale in (
        (left, "accuracy_normalized", "normalised accuracy (%)", 100),
        (right, "bytes_ratio", "bytes (dense encoders)", 1),
    ):
        bars = axes.barh(order, [scale * summary[name][key] for name in order], color="#4878a8")
        axes.bar_label(bars, fmt="%.1f" if scale == 100 else "%.2f", padding=3)
        axes.set(xlabel=title)
        axes.margins(x=0.15)
    return figure


def alpha_plot(curves: Mapping[str, Mapping[str, float]]) -> Figure:
    """Mean validation accuracy against alpha, a line for each candidate whose alpha was searched."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        points = sorted((float(alpha), 100 * accuracy) for alpha, accuracy in curve.items())
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="alpha", ylabel="validation accuracy (%)")
    axes.legend()
    return figure
