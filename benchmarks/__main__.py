"""``python -m benchmarks``: measure, print the table, write it with its plot to a folder."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from . import archive, evaluation, memory, report, speed
from .towers import TOWERS


def main() -> None:
    """Run what the options ask for; by default one block of ViT-B-32, a few minutes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("--model", nargs="+", choices=TOWERS, default=["ViT-B-32"])
    parser.add_argument("--tasks", nargs="+", type=int, default=[8, 14, 20])
    parser.add_argument("--blocks", type=int, default=1, help="blocks of the tower; 0 for all")
    parser.add_argument(
        "--file-blocks", type=int, default=1, help="the same for merges of files, which need disk space"
    )
    parser.add_argument("--repeats", type=int, default=2, help="of the library's variants; the least time counts")
    parser.add_argument("--candidates", type=int, default=10, help="models evaluated in one pass")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    measurements, costs = [], []
    for model in options.model:
        blocks = options.blocks or TOWERS[model].blocks
        for tasks in options.tasks:
            measurements += speed.measure(model, tasks, blocks, options.repeats, _say)
            costs += _from_files(model, options.file_blocks or TOWERS[model].blocks, tasks)
    served = [
        one
        for model in options.model
        for one in archive.measure(model, options.file_blocks or TOWERS[model].blocks, _say)
    ]
    speeds = [one for case in evaluation.CASES for one in evaluation.measure(case, options.candidates, _say)]
    bounds = evaluation.peak_memory(images=3000, side=224, bounds={"64 MiB": 2**26, "2 GiB": 2**31})
    sys.stdout.write(report.write(options.out, _machine(), measurements, costs, served, speeds, bounds) + "\n")


def _from_files(model: str, blocks: int, tasks: int) -> list[report.MemoryRow]:
    rows: list[report.MemoryRow] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        memory.write_files(folder, model, blocks, tasks)
        for variant, threads in (("exact, 1 thread", 1), ("exact, 2 threads", 2), (speed.AUTHORS, "authors")):
            rows.append((model, blocks, tasks, variant, memory.cost_of_merging(folder, threads)))
            _say(f"{model}, {tasks} tasks, from files: {variant}")
    return rows


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    )
    return f"{names[0] if names else platform.machine()}, torch {torch.__version__}, numpy {np.__version__}"


if __name__ == "__main__":
    main()
