"""``python -m benchmarks.serving``: from an archive, a task's weights in a live model, its first tensor, and memory.

With ``--folder`` it measures one archive, in this process, and prints the figures as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tsvlib.archive import compress, open_archive
from tsvlib.checkpoint import open_checkpoint
from tsvlib.parallel import single_threaded_blas

from . import report
from .memory import peak_anonymous_bytes, write_files
from .towers import TOWERS

TASKS = 2
STORED: dict[str, dict[str, Any]] = {
    "fp16, rank 1/8": {"rank_fraction": 1 / 8},
    "int8, rank 1/8": {"rank_fraction": 1 / 8, "dtype": "int8"},
    "int8, 10 %": {"budget": "10%", "dtype": "int8"},
    "int8, 5 %": {"budget": "5%", "dtype": "int8"},
}
"""What of a task is kept, by the words of the table."""
_REPEATS = 5


@dataclass(frozen=True)
class Serving:
    """What one archive took to serve from, on one core; files in the page cache."""

    model: str
    stored: str
    file_bytes: int
    dense_bytes: int
    """Of all tasks."""
    switch_cpu_seconds: float
    """Overwriting a live model with another task's, base known; the least of some repeats."""
    first_switch_cpu_seconds: float
    """The same with every tensor of the base compared with its digest, and every entry with its checksum."""
    first_tensor_cpu_ms: float
    """From a closed file to the first tensor of a task, one of the largest; the least of some repeats."""
    first_tensor_wall_ms: float
    """The same by the clock on the wall; on a busy machine mostly waiting."""
    memory_bytes: int
    """Anonymous memory at the peak of a switch above that before; the live model is not counted."""
    largest_tensor_bytes: int

    @property
    def gigabytes_per_second(self) -> float:
        """Weights rebuilt per CPU second."""
        return self.dense_bytes / TASKS / self.switch_cpu_seconds / 1e9


def main(words: Sequence[str] | None = None) -> None:
    """Run what the options ask for; by default one block of ViT-B-32."""
    parser = report.options("serving", main.__doc__)
    parser.add_argument("--model", choices=TOWERS, default="ViT-B-32")
    parser.add_argument("--blocks", type=int, default=1, help="blocks of the tower; 0 for all")
    parser.add_argument("--folder", type=Path, help="of one archive to measure in this process")
    chosen = parser.parse_args(words)
    if chosen.folder:
        _measure_here(chosen.folder)
        return
    found = measure(chosen.model, chosen.blocks or TOWERS[chosen.model].blocks, report.say)
    about = (
        "Serving two synthetic tasks from an archive, on one core: a live model becomes the other task's, in place; "
        "*first* means with every tensor of the base and every entry checked. Memory is beyond the live model."
    )
    report.write(
        chosen.out, "serving", "Serving from an archive", [about, table(found)], [asdict(one) for one in found]
    )


def measure(model: str, blocks: int, say: Callable[[str], None]) -> list[Serving]:
    """Every way of storing two synthetic tasks of a tower.

    Args:
        model: a name of ``TOWERS``.
        blocks: how many of the tower's blocks.
        say: told of each archive when it is measured.
    """
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, model, blocks, TASKS)
        base = open_checkpoint(folder / "base.safetensors")
        tasks = {path.stem: open_checkpoint(path) for path in sorted(folder.glob("task-*.safetensors"))}
        for stored, settings in STORED.items():
            compress(base, tasks, out=folder / "archive.safetensors", **settings)
            results.append(Serving(model, stored, **_in_a_process(folder)))
            say(f"{model}: serving from an archive, {stored}")
    return results


def table(results: list[Serving]) -> pd.DataFrame:
    """One row an archive."""
    return pd.DataFrame(
        {
            "model": one.model,
            "stored": one.stored,
            "bytes of dense": f"{one.file_bytes / one.dense_bytes:.1%}",
            "switch, CPU s": f"{one.switch_cpu_seconds:.3f}",
            "GB/s of weights": f"{one.gigabytes_per_second:.2f}",
            "first switch, CPU s": f"{one.first_switch_cpu_seconds:.3f}",
            "first tensor, CPU ms (wall)": f"{one.first_tensor_cpu_ms:.0f} ({one.first_tensor_wall_ms:.0f})",
            "memory, MB": f"{one.memory_bytes / 1e6:.1f}",
            "largest tensor, MB": f"{one.largest_tensor_bytes / 1e6:.1f}",
        }
        for one in results
    )


def _in_a_process(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.serving", "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def _measure_here(folder: Path) -> None:
    path, base = folder / "archive.safetensors", open_checkpoint(folder / "base.safetensors")
    live = {name: torch.empty(spec.shape) for name, spec in base.specs.items()}
    for tensor in live.values():
        tensor.zero_()  # its memory is taken now
    largest = max(base.specs, key=lambda name: base.specs[name].nbytes)
    with single_threaded_blas():
        torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the first call loads libraries
        efforts, waits = [], []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            efforts.append(_cpu_seconds(lambda: _first_tensor(path, folder / "base.safetensors", largest)))
            waits.append(time.perf_counter() - start)
        archive = open_archive(path)
        first = _cpu_seconds(lambda: archive.load_into(live, "task-00", base))
        archive.load_into(live, "task-01", base)
        switches = [
            _cpu_seconds(lambda i=i: archive.load_into(live, f"task-{i % 2:02}", base)) for i in range(_REPEATS)
        ]  # type: ignore[misc]
        before = _anonymous_bytes()
        with peak_anonymous_bytes() as peak:
            for i in range(4):
                archive.load_into(live, f"task-{i % 2:02}", base)
    figures = {
        "file_bytes": path.stat().st_size,
        "dense_bytes": TASKS * base.nbytes,
        "switch_cpu_seconds": min(switches),
        "first_switch_cpu_seconds": first,
        "first_tensor_cpu_ms": 1000 * min(efforts),
        "first_tensor_wall_ms": 1000 * min(waits),
        "memory_bytes": max(0, peak[0] - before),
        "largest_tensor_bytes": base.specs[largest].nbytes,
    }
    sys.stdout.write(json.dumps(figures))


def _first_tensor(path: Path, base: Path, name: str) -> torch.Tensor:
    return open_archive(path).extract("task-00", open_checkpoint(base))[name]


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _anonymous_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
