"""``python -m benchmarks.workers``: a merge by the flow, on one core, on one Dask worker and on two; wall seconds.

Everything is on this machine: a Prefect server, a scheduler, workers of one thread. Each time counts one flow run with
an empty store, from fetching to the joined file, in a process and on workers that have loaded their libraries; the
least of the repeats counts, and the variants alternate.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import yaml

from . import memory, report
from .towers import TOWERS

RUN = """
import flows, json, sys, time
from prefect.settings import PREFECT_API_URL, temporary_settings
from flows.server import server_url
from flows.merge import merge_suite
with temporary_settings({PREFECT_API_URL: server_url()}):
    merge_suite("small/suite.yaml", "tsv-m")  # loads libraries, here and on the workers
    start = time.perf_counter()
    digest = merge_suite("suite.yaml", "tsv-m").blob.digest
    print(json.dumps([time.perf_counter() - start, digest]))
"""
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}  # docs/deployment.md
SERIAL, ONE, TWO, THREADS = "one core", "one Dask worker", "two Dask workers", "one process, both cores"


def main(words: Sequence[str] | None = None) -> None:
    """Run the merge flow on one core, on two, and on one and two Dask workers."""
    parser = report.options("workers", main.__doc__)
    parser.add_argument("--model", choices=TOWERS, default="ViT-B-32")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=6, help="blocks of the tower; 0 for all")
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args(words)
    blocks = chosen.blocks or TOWERS[chosen.model].blocks
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_suite(folder, chosen.model, blocks, chosen.tasks)
        _write_suite(folder / "small", chosen.model, 1, 2)
        times = _measure(folder, chosen.repeats)
    about = (
        f"{chosen.model}, {blocks} blocks, {chosen.tasks} tasks. Least wall seconds of {chosen.repeats}, all on one "
        f"machine of {len(os.sched_getaffinity(0))} cores; load average at the end {os.getloadavg()[0]:.1f}. All "
        "variants made the same file."
    )
    report.write(chosen.out, "workers", "The merge flow on workers", [about, _table(times)])


def _table(times: dict[str, list[float]]) -> pd.DataFrame:
    best = {variant: min(found) for variant, found in times.items()}
    return pd.DataFrame(
        {
            "where": variant,
            "seconds": f"{seconds:.1f}",
            "all times": ", ".join(f"{one:.1f}" for one in times[variant]),
            "against one core": f"{best[SERIAL] / seconds:.2f} ×",
            "against one worker": f"{best[ONE] / seconds:.2f} ×",
        }
        for variant, seconds in best.items()
    )


def _write_suite(folder: Path, model: str, blocks: int, tasks: int) -> None:
    folder.mkdir(exist_ok=True)
    memory.write_files(folder, model, blocks, tasks)
    files = {f"task-{i:02}": {"checkpoint": f"task-{i:02}.safetensors", "data": "none"} for i in range(tasks)}
    suite = {"name": "towers", "model": "none/", "base": "base.safetensors", "tasks": files}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))


def _measure(folder: Path, repeats: int) -> dict[str, list[float]]:
    home = {"HOME": str(folder), "PREFECT_HOME": str(folder / "prefect"), "OMP_NUM_THREADS": "1"}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "TSV_"))
    } | home
    times: dict[str, list[float]] = {variant: [] for variant in (SERIAL, ONE, TWO, THREADS)}
    digests: set[str] = set()
    try:
        for repeat in range(repeats):
            for variant, found in times.items():
                store = folder / f"store-{repeat}-{variant.replace(' ', '-')}"
                own = environment | {"TSV_STORE": str(store), "PREFECT_LOCAL_STORAGE_PATH": str(store / "results")}
                workers = {ONE: 1, TWO: 2}.get(variant, 0)
                with _cluster(workers, folder, environment) as runner:
                    seconds, digest = _run(folder, own | {"TSV_RUNNER": runner}, [0] if variant == SERIAL else None)
                found.append(seconds)
                digests.add(digest)
                sys.stderr.write(f"{variant}: {seconds:.1f} s\n")
                subprocess.run(["rm", "-rf", str(store)], check=True)
    finally:
        subprocess.run([sys.executable, "-m", "flows.server", "stop"], cwd=folder, env=environment, check=False)
    if len(digests) > 1:
        sys.exit(f"the variants differ: {digests}")
    return times


def _run(folder: Path, environment: dict[str, str], cores: list[int] | None) -> tuple[float, str]:
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores))] if cores else []
    command = [*pinned, sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    seconds, digest = json.loads(done.stdout.splitlines()[-1])
    return seconds, digest


@contextmanager
def _cluster(workers: int, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A Dask cluster, and the setting that names it; without workers, the setting for the flow's own process."""
    if not workers:
        yield "threads"
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dask = [sys.executable, "-m", "dask"]
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [*dask, "worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--no-dashboard"]
    quiet = {
        "cwd": folder,
        "env": environment | KEEP_MEMORY,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    commands = [scheduler, *([worker] * workers)]
    processes = [subprocess.Popen(command, start_new_session=True, **quiet) for command in commands]  # type: ignore[call-overload]
    try:
        _wait_for_workers(port, workers)
        yield f"dask://127.0.0.1:{port}"
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_workers(port: int, workers: int) -> None:
    from distributed import Client

    with Client(f"tcp://127.0.0.1:{port}", timeout=120, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=120)
        time.sleep(1)


if __name__ == "__main__":
    main()
