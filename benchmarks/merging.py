"""``python -m benchmarks.merging``: speed, error and memory of TSV-M beside the paper's algorithm."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
import pandas as pd

from . import memory, report, speed
from .memory import Cost
from .speed import AUTHORS, VARIANTS, Measurement
from .towers import TOWERS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MemoryRow = tuple[str, int, int, str, Cost]


def main(words: Sequence[str] | None = None) -> None:
    """Run what the options ask for; by default one block of ViT-B-32, a few minutes."""
    parser = report.options("merging", main.__doc__)
    parser.add_argument("--model", nargs="+", choices=TOWERS, default=["ViT-B-32"])
    parser.add_argument("--tasks", nargs="+", type=int, default=[8, 14, 20])
    parser.add_argument("--blocks", type=int, default=1, help="blocks of the tower; 0 for all")
    parser.add_argument(
        "--file-blocks", type=int, default=1, help="the same for merges of files, which need disk space"
    )
    parser.add_argument("--repeats", type=int, default=2, help="of the library's variants; the least time counts")
    chosen = parser.parse_args(words)
    measurements: list[Measurement] = []
    costs: list[MemoryRow] = []
    for model in chosen.model:
        for tasks in chosen.tasks:
            blocks = chosen.blocks or TOWERS[model].blocks
            measurements += speed.measure(model, tasks, blocks, chosen.repeats, report.say)
            costs += _from_files(model, chosen.file_blocks or TOWERS[model].blocks, tasks)
    write(chosen.out, measurements, costs)


def write(folder: Path, measurements: list[Measurement], costs: list[MemoryRow]) -> None:
    """Write the report and its plot."""
    parts = [
        "Process CPU seconds on one thread, variants alternating in one process; error is the relative Frobenius "
        "distance of merged matrices from the same algorithm in float64.",
        speed_table(measurements),
        "Merges from files, each in a process of its own:",
        memory_table(costs),
        "![times faster](merging.svg)",
    ]
    raw = {
        "speed": [asdict(one) for one in measurements],
        "memory": [[*row, asdict(cost)] for *row, cost in costs],
    }
    report.write(folder, "merging", "Merging", parts, raw)
    _plot(folder / "merging.svg", measurements)


def _from_files(model: str, blocks: int, tasks: int) -> list[MemoryRow]:
    rows: list[MemoryRow] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory.write_files(folder, model, blocks, tasks)
        for variant, threads in (("exact, 1 thread", 1), ("exact, 2 threads", 2), (AUTHORS, "authors")):
            rows.append((model, blocks, tasks, variant, memory.cost_of_merging(folder, threads)))
            report.say(f"{model}, {tasks} tasks, from files: {variant}")
    return rows


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


if __name__ == "__main__":
    main()
