"""A merge of checkpoint files, in a process of its own: CPU and wall seconds, and peak anonymous memory.

``python -m benchmarks.memory FOLDER THREADS`` merges the files of FOLDER and prints the figures as JSON; with THREADS
``authors`` it holds all task vectors and merges them as the paper's code does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tsvlib.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from tsvlib.merging import merge
from tsvlib.parallel import single_threaded_blas
from tsvlib.tensors import TensorSpec

from . import authors
from .towers import TOWERS, task_deltas

_SAMPLING = 0.01  # seconds


@dataclass(frozen=True)
class Cost:
    """Of one merge, from files to file."""

    cpu_seconds: float
    wall_seconds: float
    peak_anonymous_bytes: int


def write_files(folder: Path, model: str, blocks: int, tasks: int) -> None:
    """A base of zeros, so that a fine-tune is its delta, and ``tasks`` fine-tunes, one parameter at a time."""
    shapes = TOWERS[model].shapes(blocks)
    specs = {name: TensorSpec(shape, torch.float32) for name, shape in shapes.items()}
    write_checkpoint(folder / "base.safetensors", specs, ((name, torch.zeros(shape)) for name, shape in shapes.items()))
    for task in range(tasks):
        deltas = ((name, task_deltas(shape, 1, 1000 * task + i)[0]) for i, (name, shape) in enumerate(shapes.items()))
        write_checkpoint(folder / f"task-{task:02}.safetensors", specs, deltas)


def cost_of_merging(folder: Path, threads: int | str) -> Cost:
    """Of merging a folder's files in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", str(folder), str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return Cost(**json.loads(done.stdout))


@contextmanager
def peak_anonymous_bytes() -> Iterator[list[int]]:
    """Sampled from the kernel; the list's only entry is the peak so far."""
    peak, stop = [_anonymous_bytes()], threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLING):
            peak[0] = max(peak[0], _anonymous_bytes())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        stop.set()
        sampler.join()


def _anonymous_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def _merge_as_the_authors(base: Checkpoint, tasks: dict[str, Checkpoint]) -> None:
    vectors = [{name: checkpoint[name] - base[name] for name in base} for checkpoint in tasks.values()]
    with single_threaded_blas():
        merged = {name: base[name] + authors.merge([vector[name] for vector in vectors]) for name in base}
    assert len(merged) == len(base)


def main(folder: Path, threads: str) -> None:
    """Merge and print what it took."""
    warnings.simplefilter("ignore")
    base = open_checkpoint(folder / "base.safetensors")
    tasks = {path.stem: open_checkpoint(path) for path in sorted(folder.glob("task-*.safetensors"))}
    wall, cpu = time.perf_counter(), time.process_time()
    with peak_anonymous_bytes() as peak:
        if threads == "authors":
            _merge_as_the_authors(base, tasks)
        else:
            merge(base, tasks, out=folder / "merged.safetensors", threads=int(threads))
    cost = Cost(time.process_time() - cpu, time.perf_counter() - wall, peak[0])
    sys.stdout.write(json.dumps(cost.__dict__))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
