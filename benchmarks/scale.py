"""A merge of models larger than the memory allowed: an 8-billion-parameter language model's shapes, a few layers of it.

``python -m benchmarks.scale FOLDER --layers 10 --kills 5`` makes a base and two fine-tunes in bfloat16, a shard a layer
(1.3 GB a layer for all three; they are kept, and found again), then merges them in a process that may not hold more
than ``--limit`` bytes of memory of its own, killed at random moments and started again, and prints figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tsvlib.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from tsvlib.merging import merge
from tsvlib.plan import plan
from tsvlib.tensors import TensorSpec

from .memory import peak_anonymous_bytes

BASE, TASKS = "base", ("a", "b")
INDEX = "model.safetensors.index.json"
_LONGEST_WAIT = 15.0  # seconds from the first sign of a shard to a kill


@dataclass(frozen=True)
class Size:
    """Of a transformer's layers."""

    layers: int
    width: int = 4096
    inner: int = 14336
    keys: int = 1024

    def specs(self) -> dict[str, TensorSpec]:
        """Name -> shape and dtype of every matrix."""
        shapes = {
            "self_attn.q_proj": (self.width, self.width),
            "self_attn.k_proj": (self.keys, self.width),
            "self_attn.v_proj": (self.keys, self.width),
            "self_attn.o_proj": (self.width, self.width),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }
        return {
            f"model.layers.{layer}.{name}.weight": TensorSpec(shape, torch.bfloat16)
            for layer in range(self.layers)
            for name, shape in shapes.items()
        }


def write_models(folder: Path, size: Size) -> None:
    """A base and two fine-tunes, one parameter at a time; those that are there already are left as they are."""
    specs = size.specs()
    shards = {name: f"model-{name.split('.')[2]:0>5}.safetensors" for name in specs}
    like = Checkpoint(specs, torch.empty, shards=shards)
    for seed, model in enumerate((BASE, *TASKS)):
        if not (folder / model / INDEX).exists():
            write_checkpoint(folder / model / INDEX, specs, _values(specs, seed), like=like)


def _values(specs: dict[str, TensorSpec], seed: int) -> Iterator[tuple[str, Tensor]]:
    for number, (name, spec) in enumerate(specs.items()):
        value = torch.randn(spec.shape, generator=torch.Generator().manual_seed(number)) / 64
        if seed:
            value += 1e-3 * torch.randn(spec.shape, generator=torch.Generator().manual_seed(1000 * seed + number))
        yield name, value


def merge_models(folder: Path, out: Path, method: str, threads: int, limit: int | None = None) -> dict[str, float]:
    """Merge in this process; what was planned and what it took, in bytes and seconds.

    Args:
        limit: bytes of memory of its own that this process may have, with the program's (RLIMIT_DATA).
    """
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    planned = plan(folder / BASE, {task: folder / task for task in TASKS}, method, values=False, threads=threads)
    base = open_checkpoint(folder / BASE)
    tasks = {task: open_checkpoint(folder / task) for task in TASKS}
    start = time.perf_counter()
    with peak_anonymous_bytes() as peak:
        program = peak[0]
        merged = merge(base, tasks, method, out=out, threads=threads)
    return {
        "input_bytes": base.nbytes + sum(task.nbytes for task in tasks.values()),
        "largest_parameter_bytes": max(4 * math.prod(spec.shape) for spec in base.specs.values()),
        "program_bytes": program,
        "peak_bytes": peak[0] - program,
        "planned_bytes": planned.peak_memory_bytes,
        "seconds": time.perf_counter() - start,
        "shards": len(set((merged.shards or {}).values())),
    }


def _merge_elsewhere(options: argparse.Namespace) -> subprocess.Popen[str]:
    words = [str(options.folder), "--method", options.method, "--threads", str(options.threads)]
    command = [sys.executable, "-m", "benchmarks.scale", *words, "--limit", str(options.limit), "--only-merge"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _killed_and_started_again(options: argparse.Namespace) -> str:
    out = options.folder / "out"
    for _ in range(options.kills):
        for remains in out.glob(".model-*"):
            remains.unlink()
        process = _merge_elsewhere(options)
        while process.poll() is None and not list(out.glob(".model-*")):
            time.sleep(0.05)
        time.sleep(random.uniform(0, _LONGEST_WAIT))
        process.kill()
        process.wait()
        whole = sorted(out.glob("model-*.safetensors"))
        for shard in whole:
            open_checkpoint(shard)  # raises, if it is not whole
        sys.stderr.write(f"killed: {len(whole)} shards are there, all whole; index: {(out / INDEX).exists()}\n")
    return _merge_elsewhere(options).communicate()[0]


def main() -> None:
    """Make, merge and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--method", default="task-arithmetic")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=3 * 2**30, help="bytes, the program's own included")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--only-merge", action="store_true", help="what this program calls itself with")
    options = parser.parse_args()
    if options.only_merge:
        out = options.folder / "out" / INDEX
        found = merge_models(options.folder, out, options.method, options.threads, options.limit)
        sys.stdout.write(json.dumps(found))
    else:
        write_models(options.folder, Size(options.layers))
        sys.stdout.write(_killed_and_started_again(options) + "\n")


if __name__ == "__main__":
    main()
