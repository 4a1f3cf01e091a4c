"""The table and the plot of a benchmark run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import matplotlib
import pandas as pd

from .archive import Serving
from .archive import table as serving_table
from .evaluation import Speed
from .evaluation import table as evaluation_table
from .memory import Cost
from .speed import AUTHORS, VARIANTS, Measurement

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MemoryRow = tuple[str, int, int, str, Cost]


def speed_table(measurements: list[Measurement]) -> pd.DataFrame:
    """One row a model, number of tasks and variant."""
    theirs = {(one.model, one.tasks): one.cpu_seconds for one in measurements if one.variant == AUTHORS}
    return pd.DataFrame(
        {
            "model": one.model,
            "blocks": one.blocks,
            "tasks": one.tasks,
            "variant": one.variant,
            "CPU s": f"{one.cpu_seconds:.2f}",
            "times faster": f"{theirs[one.model, one.tasks] / one.cpu_seconds:.2f}",
            "largest error": f"{max(one.errors):.1e}",
            "median error": f"{sorted(one.errors)[len(one.errors) // 2]:.1e}",
        }
        for one in measurements
    )


def memory_table(rows: list[MemoryRow]) -> pd.DataFrame:
    """One row a merge of files."""
    return pd.DataFrame(
        {
            "model": model,
            "blocks": blocks,
            "tasks": tasks,
            "merge of files": variant,
            "CPU s": f"{cost.cpu_seconds:.1f}",
            "wall s": f"{cost.wall_seconds:.1f}",
            "peak anonymous MB": f"{cost.peak_anonymous_bytes / 1e6:.0f}",
        }
        for model, blocks, tasks, variant, cost in rows
    )


def write(
    folder: Path,
    machine: str,
    measurements: list[Measurement],
    memory: list[MemoryRow],
    served: list[Serving],
    speeds: list[Speed],
    bounds: pd.DataFrame,
) -> str:
    """Write results.md, results.json and speed.svg; return the text of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(
        [
            "# Benchmark",
            f"Measured on {machine}. Process CPU seconds on one thread, variants alternating in one process; error is "
            "the relative Frobenius distance of merged matrices from the same algorithm in float64.",
            speed_table(measurements).to_markdown(index=False),
            "Merges from files, each in a process of its own:",
            memory_table(memory).to_markdown(index=False),
            "![times faster](speed.svg)",
            "Serving two synthetic tasks from an archive, on one core: a live model becomes the other task's, in "
            "place; *first* means with every tensor of the base and every entry checked. Memory is beyond the live "
            "model.",
            serving_table(served).to_markdown(index=False),
            "Evaluation of random candidates on random images, process CPU seconds of all threads, decoding and heads "
            "included:",
            evaluation_table(speeds).to_markdown(index=False),
            "Peak memory of an evaluation under a bound on decoded images, above that before it started:",
            bounds.to_markdown(index=False),
        ]
    )
    (folder / "results.md").write_text(text + "\n")
    raw = {
        "machine": machine,
        "speed": [asdict(one) for one in measurements],
        "memory": [[*row, asdict(cost)] for *row, cost in memory],
        "serving": [asdict(one) for one in served],
        "evaluation": [asdict(one) for one in speeds],
        "evaluation_memory": bounds.to_dict("records"),
    }
    (folder / "results.json").write_text(json.dumps(raw, indent=1) + "\n")
    _plot(folder / "speed.svg", measurements)
    return text


def _plot(path: Path, measurements: list[Measurement]) -> None:
    groups = list(dict.fromkeys((one.model, one.tasks) for one in measurements))
    seconds = {(one.model, one.tasks, one.variant): one.cpu_seconds for one in measurements}
    figure, axes = plt.subplots(figsize=(1.6 * len(groups) + 3, 3.6), layout="constrained")
    width = 0.8 / (len(VARIANTS) - 1)
    for i, variant in enumerate(VARIANTS[1:]):
        ratios = [seconds[*group, AUTHORS] / seconds[*group, variant] for group in groups]
        bars = axes.bar([x + i * width for x in range(len(groups))], ratios, width, label=variant)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks([x + width for x in range(len(groups))], [f"{model}\n{tasks} tasks" for model, tasks in groups])
    axes.set_ylabel(f"times faster than\n{AUTHORS} (CPU)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "tsvlib"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
