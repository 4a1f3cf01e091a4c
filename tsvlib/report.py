"""Comparing candidates: the metrics of each under the contract's names, as a table and as plots."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .candidate import FINE_TUNED, ZERO_SHOT
from .errors import DataError
from .guard import Finding, doubtful_tasks
from .predictions import Predictions
from .statistics import Accuracy, Difference, Interval, accuracy_with_intervals, compare_paired

Metrics = dict[str, float]

FLAG = " !"
TRUSTED = "without " + FLAG.strip()

matplotlib.rcParams["svg.hashsalt"] = "tsvlib"  # the same plot gives the same file


def metrics(
    predictions: Predictions, candidate: str, findings: Sequence[Finding], size: int, dense_size: int, **others: float
) -> Metrics:
    """The metrics of one candidate.

    Beside the accuracies stand the ends of their 95 % intervals (``_low``, ``_high``), a 1 for each task whose
    reference or data are in doubt (``doubtful/<task>``) or on which this candidate is odd (``flagged/<task>``), and,
    where tasks are in doubt, the means without them (``_trusted``).

    Args:
        predictions: of all candidates, the fine-tuned models among them.
        candidate: whose metrics.
        findings: what is wrong, from ``predictions.findings()``.
        size: bytes of the candidate on disk.
        dense_size: bytes of one dense encoder on disk.
        others: further metrics, such as ``seconds/make``.

    Raises:
        DataError: a fine-tuned model gets no image right, so that nothing can be measured against it.
    """
    correct, reference = predictions.correct(candidate), predictions.correct(FINE_TUNED)
    measured = accuracy_with_intervals(correct, reference)
    doubtful = doubtful_tasks(findings)
    flagged = sorted({one.task for one in findings if one.candidate == candidate} - set(doubtful))
    trusted = [task for task in correct if task not in doubtful]
    return {
        "accuracy": measured.mean.value,  # first: MLflow's comparison page shows the first metric
        "accuracy_normalized": measured.normalised_mean.value,
        **{f"accuracy/{task}": one.value for task, one in measured.tasks.items()},
        **{f"accuracy_normalized/{task}": one.value for task, one in measured.normalised_tasks.items()},
        **_ends(measured),
        **({} if not doubtful or not trusted else _trusted(measured, trusted)),
        **{f"doubtful/{task}": 1.0 for task in doubtful},
        **{f"flagged/{task}": 1.0 for task in flagged},
        "bytes": size,
        "bytes_ratio": size / dense_size,
        **others,
    }


def _ends(measured: Accuracy) -> Metrics:
    """The ends of all intervals."""
    named = {"accuracy": measured.mean, "accuracy_normalized": measured.normalised_mean}
    ends = {f"{name}_{end}": getattr(one, end) for name, one in named.items() for end in ("low", "high")}
    for task, one in measured.tasks.items():
        ends |= {f"accuracy_low/{task}": one.low, f"accuracy_high/{task}": one.high}
    return ends


def _trusted(measured: Accuracy, tasks: Iterable[str]) -> Metrics:
    """The means over the tasks that are not in doubt."""
    tasks = list(tasks)
    return {
        "accuracy_trusted": float(np.mean([measured.tasks[task].value for task in tasks])),
        "accuracy_normalized_trusted": float(np.mean([measured.normalised_tasks[task].value for task in tasks])),
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


def usual_order(summary: Mapping[str, Metrics]) -> list[str]:
    """Candidates by accuracy, best last; the references first and last."""
    return sorted(summary, key=lambda name: (name != ZERO_SHOT, name == FINE_TUNED, summary[name]["accuracy"]))


def comparison(summary: Mapping[str, Metrics], order: Sequence[str] | None = None) -> pd.DataFrame:
    """One row a candidate, in an order or the usual one: accuracy of each task and the means in per cent with half
    their 95 % intervals, megabytes, ratio to a dense encoder, seconds to make. Where tasks are in doubt, the means
    without them too."""
    rows = {}
    for name, row in summary.items():
        tasks = {
            key.removeprefix("accuracy/"): 100 * value for key, value in row.items() if key.startswith("accuracy/")
        }
        means = {"mean": "accuracy", "normalised": "accuracy_normalized"}
        rows[name] = dict(tasks)
        for column, key in means.items():
            rows[name][column] = 100 * row[key]
            if f"{key}_low" in row:
                rows[name][f"{column} ±"] = 50 * (row[f"{key}_high"] - row[f"{key}_low"])
        for column, key in means.items():
            if f"{key}_trusted" in row:
                rows[name][f"{column} {TRUSTED}"] = 100 * row[f"{key}_trusted"]
        rows[name] |= {
            "MB": row["bytes"] / 1e6,
            "ratio": row["bytes_ratio"],
            "seconds": row.get("seconds/make", float("nan")),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.loc[list(order or usual_order(summary))]


def formatted(table: pd.DataFrame, summary: Mapping[str, Metrics] | None = None) -> pd.DataFrame:
    """The comparison with every figure as text, to the digits that mean something.

    Means are followed by ± half their 95 % interval. With the summary, a task in doubt and a figure that is odd are
    marked with an exclamation mark.
    """
    digits = {"MB": 2, "ratio": 2, "seconds": 2}
    text = table.apply(
        lambda column: column.map(lambda v: "" if pd.isna(v) else f"{v:.{digits.get(str(column.name), 1)}f}")
    )
    for column in [name for name in table if str(name).endswith(" ±")]:
        whole = str(column).removesuffix(" ±")
        text[whole] = [f"{v} ± {half}" if half else v for v, half in zip(text[whole], text[column], strict=True)]
        del text[column]
    for name, row in (summary or {}).items():
        for task in _marked(row, "flagged/"):
            text.loc[name, task] += FLAG
    doubtful = {task for row in (summary or {}).values() for task in _marked(row, "doubtful/")}
    return text.rename(columns={task: task + FLAG for task in doubtful})


def told(findings: Sequence[Finding]) -> list[str]:
    """What the marks of a table mean, as lines below it."""
    if not findings:
        return []
    lines = ["", *(f"! {one.message}" for one in findings)]
    if doubtful := doubtful_tasks(findings):
        lines.append(f"The means {TRUSTED!r} leave out what is in doubt: {', '.join(doubtful)}.")
    return lines


def _marked(row: Metrics, prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in row if key.startswith(prefix)]


def differences(predictions: Predictions, baseline: str, names: Iterable[str] | None = None) -> dict[str, Difference]:
    """Every other candidate, or those named, minus the baseline, on the same images.

    Raises:
        DataError: there is no such candidate.
    """
    before, reference = predictions.correct(baseline), predictions.correct(FINE_TUNED)
    others = [name for name in names or predictions.candidates if name != baseline]
    return {name: compare_paired(predictions.correct(name), before, reference) for name in others}


def difference_table(found: Mapping[str, Difference]) -> pd.DataFrame:
    """One row a candidate, worst first: differences in percentage points with their 95 % intervals, p-values, and on
    how many tasks it is better or worse by McNemar's test at 5 %."""
    rows = {}
    for name, one in sorted(found.items(), key=lambda item: item[1].mean.value):
        sure = [task for task, p_value in one.p_values.items() if p_value < 0.05]
        rows[name] = {
            **{task: f"{100 * interval.value:+.1f}" for task, interval in one.tasks.items()},
            "mean": _points(one.mean),
            "p": f"{one.p_value:.2g}" if one.p_value > 2e-4 else "< 0.0002",
            "normalised": _points(one.normalised_mean),
            "better / worse": f"{sum(one.tasks[task].value > 0 for task in sure)} / "
            f"{sum(one.tasks[task].value < 0 for task in sure)} of {len(one.tasks)}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _points(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def accuracy_plot(name: str, row: Metrics, reference: Metrics) -> Figure:
    """Bars of one candidate's accuracy per task, with marks for the fine-tuned models'."""
    tasks = [key.removeprefix("accuracy/") for key in row if key.startswith("accuracy/")]
    figure = Figure(figsize=(1.5 + 0.75 * len(tasks), 3.6), layout="constrained")
    axes = figure.subplots()
    axes.bar(tasks, [100 * row[f"accuracy/{task}"] for task in tasks], color="#4878a8", label=name)
    for task in tasks:
        if f"accuracy_low/{task}" in row:
            axes.vlines(task, 100 * row[f"accuracy_low/{task}"], 100 * row[f"accuracy_high/{task}"], "black", lw=1)
    axes.plot(tasks, [100 * reference[f"accuracy/{task}"] for task in tasks], "_k", ms=26, mew=2, label=FINE_TUNED)
    axes.set(ylabel="accuracy (%)", ylim=(0, 104), title=f"{name}: mean {100 * row['accuracy']:.1f} %")
    axes.tick_params(axis="x", rotation=35)
    axes.legend(loc="lower right")
    return figure


def comparison_plot(summary: Mapping[str, Metrics], order: Sequence[str] | None = None) -> Figure:
    """Normalised accuracy of all candidates with its 95 % intervals, beside the bytes each takes."""
    order = list(order or usual_order(summary))
    figure = Figure(figsize=(9, 0.9 + 0.42 * len(order)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, title, scale in (
        (left, "accuracy_normalized", "normalised accuracy (%)", 100),
        (right, "bytes_ratio", "bytes (dense encoders)", 1),
    ):
        found = [summary[name] for name in order]
        values = [scale * row[key] for row in found]
        below = [scale * (row[key] - row.get(f"{key}_low", row[key])) for row in found]
        above = [scale * (row.get(f"{key}_high", row[key]) - row[key]) for row in found]
        bars = axes.barh(order, values, xerr=[below, above], color="#4878a8", error_kw={"lw": 1})
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
