"""What the cache saves and what the pipeline costs: commands as a user runs them, each in a process of its own.

``python -m benchmarks.reuse`` prints the table and writes it to reuse.md.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from . import report
from .memory import write_files
from .towers import TOWERS

_MERGE = [sys.executable, "-c", "from tsvlib.cli import main; main()", "merge", "--suite", "suite.yaml", "--force"]
_FLOW = [sys.executable, "-m", "flows.merge", "tsv-m"]
_SERVER = [sys.executable, "-m", "flows.server"]
BARE, AGAIN, PIPELINE, IDLE = "merge without a cache", "another alpha", "merge as a flow", "the same flow again"


@dataclass(frozen=True)
class Step:
    """One command: of its process and its threads, without the Prefect server's."""

    name: str
    cpu_seconds: float
    wall_seconds: float


def measure(folder: Path, model: str, blocks: int, tasks: int, say: Callable[[str], object]) -> list[Step]:
    """Run the steps one after the other in a folder with checkpoints of this size.

    Args:
        folder: empty; it will hold 4 bytes for each weight of each task, and as much again in the store.
        model: a name of ``TOWERS``.
        blocks: of the tower.
        tasks: T.
        say: told of each step when it is done.
    """
    write_files(folder, model, blocks, tasks)
    _write_suite(folder, tasks)
    time.sleep(3)  # until the files count as settled, as a user's are
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "TSV_STORE": str(folder / "store"), "PYTHONPATH": str(Path(__file__).parents[1]),
        "PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOCAL_STORAGE_PATH": str(folder / "store" / "results"),
    }  # fmt: skip
    environment.pop("PREFECT_API_URL", None)

    def run(name: str, words: Sequence[str]) -> Step:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        say(f"{model}, {blocks} blocks, {tasks} tasks: {name}: {cpu:.1f} CPU s, {wall:.1f} s")
        return Step(name, cpu, wall)

    steps = [
        run(BARE, [*_MERGE, "--no-cache", "--out", "bare.safetensors"]),
        run("merge into an empty cache", [*_MERGE, "--out", "cached.safetensors"]),
        run(AGAIN, [*_MERGE, "--set", "alpha=0.5", "--out", "alpha.safetensors"]),
    ]
    subprocess.run(["rm", "-rf", "store"], cwd=folder, check=True)
    subprocess.run([*_SERVER, "start"], cwd=folder, env=environment, check=True, capture_output=True)
    try:
        steps += [run(PIPELINE, _FLOW), run(IDLE, _FLOW)]
    finally:
        subprocess.run([*_SERVER, "stop"], cwd=folder, env=environment, check=True, capture_output=True)
    return steps


def table(model: str, blocks: int, tasks: int, steps: Sequence[Step]) -> pd.DataFrame:
    """One row a step; ``times faster`` is against the merge without a cache, in CPU seconds."""
    bare = next(step for step in steps if step.name == BARE)
    return pd.DataFrame(
        {
            "model": model,
            "blocks": blocks,
            "tasks": tasks,
            "command": step.name,
            "CPU s": f"{step.cpu_seconds:.1f}",
            "wall s": f"{step.wall_seconds:.1f}",
            "times faster (CPU)": f"{bare.cpu_seconds / step.cpu_seconds:.2f}",
        }
        for step in steps
    )


def _write_suite(folder: Path, tasks: int) -> None:
    names = [f"task-{task:02}" for task in range(tasks)]
    described = {name: {"checkpoint": f"{name}.safetensors", "data": "none"} for name in names}
    suite = {"name": "benchmark", "model": "ViT-B-32", "base": "base.safetensors", "tasks": described}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    (folder / "params.yaml").write_text(yaml.safe_dump({"suite": "suite.yaml", "merge": {"tsv-m": {"alpha": 1.0}}}))


def main(words: Sequence[str] | None = None) -> None:
    """Run what the options ask for; by default two blocks of ViT-B-32 and eight tasks."""
    parser = report.options("reuse", main.__doc__)
    parser.add_argument("--model", choices=TOWERS, default="ViT-B-32")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=2, help="blocks of the tower; 0 for all")
    chosen = parser.parse_args(words)
    blocks = chosen.blocks or TOWERS[chosen.model].blocks
    with tempfile.TemporaryDirectory() as name:
        steps = measure(Path(name), chosen.model, blocks, chosen.tasks, report.say)
    found = table(chosen.model, blocks, chosen.tasks, steps)
    report.write(chosen.out, "reuse", "What the cache saves and the pipeline costs", [found])


if __name__ == "__main__":
    main()
