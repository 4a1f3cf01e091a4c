"""``python -m benchmarks.tracking``: many candidates in one experiment of MLflow: sending, finding, and its pages.

The runs are made up, with as many metrics and artifacts as those of a suite of eight tasks; the way they go is the real
one: outbox, SQLite, server, Chromium.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from matplotlib.image import imsave
from mlflow import MlflowClient

from flows.server import free_port
from flows.ui import wait_for
from tasks.outbox import Outbox, finished_runs
from tasks.run_record import RunRecord
from tasks.views import prepared_views

from . import report
from .browser import Browser, browser

EXPERIMENT = "many"
TASKS = ("digits", "housenumber", "style", "lower", "zodiac", "math", "relation", "cyrillic")
METHODS = ("average", "task-arithmetic", "low-rank-sum", "tsv-m", "iso-c")
_PICTURES, _TABLES = 14, 10
_PICTURE_SIDE = 80  # pixels of noise: 20 kB, as much as a plot


@dataclass(frozen=True)
class Tracking:
    """Seconds that it took with so many runs; of the pages, until what is awaited stood on them."""

    runs: int
    put: float
    """Describing all of them in the outbox."""
    push: float
    """Sending all of them to an empty database."""
    push_one_more: float
    push_again: float
    """One that is there already."""
    known: float
    """Which runs are there whole."""
    search: float
    """The best ten by MLflow's search."""
    table: float
    charts: float
    run: float
    artifact: float
    database_bytes: int


def main(words: Sequence[str] | None = None) -> None:
    """Fill an experiment; by default with 20, and with 200 runs."""
    parser = report.options("tracking", main.__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[20, 200])
    chosen = parser.parse_args(words)
    found = []
    for runs in chosen.runs:
        found.append(measure(runs))
        report.say(f"{runs} runs")
    one, five, fifteen = os.getloadavg()
    about = (
        f"One experiment, each run with {len(_metrics(0))} metrics, {_PICTURES} plots and {_TABLES} tables; MLflow "
        f"{mlflow.__version__} on SQLite, pages in Chromium with a fresh profile, on {os.cpu_count()} cores (load of "
        f"the machine {one:.1f}, {five:.1f}, {fifteen:.1f} over 1, 5 and 15 minutes). Seconds; of pages, until the "
        "best run, its figures or its plot stand there; the first page includes loading MLflow's scripts."
    )
    raw = [asdict(one) for one in found]
    report.write(chosen.out, "tracking", "Many runs in MLflow", [about, table(found)], raw)


def measure(runs: int) -> Tracking:
    """All of it with so many runs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        mlflow.set_tracking_uri(uri)
        client = MlflowClient()
        client.create_experiment(EXPERIMENT, str(folder / "artifacts"))  # and the database
        outbox, files = Outbox(folder / "outbox"), _files(folder / "files")

        def put(numbers: Sequence[int]) -> None:
            for number in numbers:
                outbox.put(_record(number), files)

        filled = _seconds(lambda: put(range(runs)))
        push = _seconds(lambda: list(outbox.push()))
        put([runs])
        one_more = _seconds(lambda: list(outbox.push()))
        put([runs])
        again = _seconds(lambda: list(outbox.push()))
        known = _seconds(lambda: finished_runs(EXPERIMENT))
        (experiment,) = [one.experiment_id for one in client.search_experiments() if one.name == EXPERIMENT]
        order = ["metrics.accuracy_normalized DESC"]
        wanted = "params.method = 'tsv-m' and metrics.accuracy > 0.5"
        search = _seconds(lambda: client.search_runs([experiment], wanted, max_results=10, order_by=order))
        (best,) = client.search_runs([experiment], max_results=1, order_by=order)
        with _server(folder, uri) as address, browser(folder) as opened:
            page = f"{address}/#/experiments/{experiment}/runs/{best.info.run_id}"
            links, top = dict(prepared_views(address)), str(best.info.run_name)
            shown = {
                "table": _seconds(lambda: opened.open(links[f"{EXPERIMENT}, table"], top)),
                "charts": _seconds(lambda: opened.open(links[f"{EXPERIMENT}, charts"], "Add chart", top)),
                "run": _seconds(lambda: opened.open(page, top, "accuracy_normalized")),
                "artifact": _seconds(lambda: _open_plot(opened, f"{page}/artifacts/plots/00.png")),
            }
        mlflow.set_tracking_uri(None)
        size = (folder / "mlflow.db").stat().st_size
        return Tracking(runs, filled, push, one_more, again, known, search, **shown, database_bytes=size)


def _open_plot(opened: Browser, link: str) -> None:
    opened.open(link, "00.png")
    opened.wait(f"[...document.images].some(image => image.naturalWidth === {_PICTURE_SIDE})")


def table(found: Sequence[Tracking]) -> pd.DataFrame:
    """One column a number of runs."""
    rows = {
        "described in the outbox": lambda one: f"{one.put:.2f}",
        "sent": lambda one: f"{one.push:.1f} ({1000 * one.push / one.runs:.0f} ms a run)",
        "one more sent": lambda one: f"{one.push_one_more:.2f}",
        "one sent that was there": lambda one: f"{one.push_again:.2f}",
        "which are there": lambda one: f"{one.known:.2f}",
        "best ten searched": lambda one: f"{one.search:.2f}",
        "runs table": lambda one: f"{one.table:.1f}",
        "charts": lambda one: f"{one.charts:.1f}",
        "a run's page": lambda one: f"{one.run:.1f}",
        "a plot among its artifacts": lambda one: f"{one.artifact:.1f}",
        "database, MB": lambda one: f"{one.database_bytes / 1e6:.1f}",
    }
    return pd.DataFrame({"": list(rows)} | {f"{one.runs} runs": [show(one) for show in rows.values()] for one in found})


def _metrics(number: int) -> dict[str, float]:
    chance = np.random.default_rng(number)
    accuracies = dict(zip(TASKS, chance.uniform(0.2, 0.99, len(TASKS)), strict=True))
    mean = float(np.mean(list(accuracies.values())))
    made = {"accuracy": mean, "accuracy_normalized": mean / 0.97, "bytes": 1.3e7, "bytes_ratio": 1.0}
    for task, one in accuracies.items():
        made |= {f"accuracy/{task}": one, f"accuracy_normalized/{task}": one / 0.97}
        made |= {f"accuracy_low/{task}": one - 0.01, f"accuracy_high/{task}": one + 0.01}
    return made | {"energy": 0.9, "sti": 1700.0 + number, "seconds/make": 0.5, "seconds/evaluate": 2.0}


def _record(number: int) -> RunRecord:
    method, alpha = METHODS[number % len(METHODS)], round(0.1 + 0.05 * (number // len(METHODS)), 2)
    return RunRecord(
        experiment=EXPERIMENT,
        name=f"{method}-{number:03}",
        description=f"**{method}** with alpha {alpha}",
        tags={"kind": "merged", "candidate_digest": f"{number:064x}", "base_digest": "0" * 64},
        parameters={"method": method, "alpha": alpha},
        metrics=_metrics(number),
    )


def _files(folder: Path) -> dict[str, Path]:
    """The same artifacts for all runs; MLflow copies them each time."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    made = {}
    for number in range(_PICTURES):
        made[f"plots/{number:02}.png"] = folder / f"{number:02}.png"
        imsave(made[f"plots/{number:02}.png"], chance.random((_PICTURE_SIDE, _PICTURE_SIDE)))
    for number in range(_TABLES):
        made[f"tables/{number:02}.csv"] = folder / f"{number:02}.csv"
        made[f"tables/{number:02}.csv"].write_text("is,left,right\nleft,10,2\nright,1,11\n")
    return made


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextmanager
def _server(folder: Path, uri: str) -> Iterator[str]:
    address = f"http://127.0.0.1:{(port := free_port(5671))}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    options = ["--host", "127.0.0.1", "--backend-store-uri", uri]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([*command, *options], cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"{address}/health", process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its workers too
        process.wait(30)


if __name__ == "__main__":
    main()
