"""``python -m benchmarks.load``: ``tsv serve`` under load from clients on loopback.

Every load has a server of its own. Tasks are mixed, one request in twenty holds an image that cannot be decoded; then
come bodies beyond the bound, and more connections than places. Needs a suite with data, and registered models
(``make run`` leaves both).
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
import pandas as pd
import psutil

from tsvlib.suite import Suite, load_suite

from . import report

LOADS = ((1, 1), (8, 1), (32, 4))
"""Clients at a time, images of a request."""
BAD_EVERY = 20
MOST_BYTES, MOST_WAITING = 64 * 2**20, 64
_SECONDS_TO_START = 120
_POOL = 200
"""Different requests that clients choose from."""


@dataclass(frozen=True)
class Load:
    """What one load found."""

    model: str
    clients: int
    images: int
    seconds: float
    statuses: dict[int, int]
    """HTTP status -> answers."""
    wrong: int
    """Requests with a bad image that were not answered with 400, or others that were not with 200."""
    median_ms: float
    high_ms: float
    """The 95th percentile."""
    peak_bytes: int
    """Resident, of the server, at the end."""

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())


@dataclass(frozen=True)
class Refusal:
    """What became of requests that are out of bounds."""

    model: str
    what: str
    statuses: dict[str, int]
    """HTTP status, or what else became of it -> requests."""
    seconds: float
    """The longest answer."""
    grown_bytes: int
    """Of the server's resident memory, by the peak of all of them."""


class Server:
    """``tsv serve`` in a process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.port = port
        self._process = psutil.Process(process.pid)

    @property
    def resident_bytes(self) -> int:
        """Resident now."""
        return int(self._process.memory_info().rss)

    def post(self, body: bytes, connection: http.client.HTTPConnection | None = None, chunked: bool = False) -> int:
        """The answer's status."""
        mine = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        content: Any = (body[at : at + 2**20] for at in range(0, len(body), 2**20)) if chunked else body
        try:
            mine.request("POST", "/invocations", content, {"Content-Type": "application/json"}, encode_chunked=chunked)
            answer = mine.getresponse()
            answer.read()
            return answer.status
        finally:
            if connection is None:
                mine.close()


def main(words: Sequence[str] | None = None) -> None:
    """Load a suite's registered models; by default the champion and the archive of lab-8."""
    parser = report.options("load", main.__doc__)
    parser.add_argument("--suite", default="lab-8")
    parser.add_argument("--alias", nargs="+", default=["champion", "archive"], help="of the registered models")
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    chosen = parser.parse_args(words)
    suite = load_suite(chosen.suite)
    found: list[Load] = []
    refused: list[Refusal] = []
    for alias in chosen.alias:
        for clients, images in LOADS:
            with serving(f"models:/{suite.name}@{alias}") as server:
                found.append(_load(server, suite, alias, clients, images, chosen.seconds))
                report.say(f"{alias}: {clients} clients with {images} images")
        with serving(f"models:/{suite.name}@{alias}") as server:
            refused += [_refuse_bodies(server, alias, chunked) for chunked in (False, True)]
            refused.append(_refuse_connections(server, suite, alias))
    one, five, fifteen = os.getloadavg()
    about = (
        f"`tsv serve` with one worker on {os.cpu_count()} cores (load of the machine at the end, clients and server in "
        f"it: {one:.1f}, {five:.1f}, {fifteen:.1f} over 1, 5 and 15 minutes), clients on loopback, each with one "
        f"connection; tasks mixed; one request in {BAD_EVERY} with an image that cannot be decoded. *Wrong*: such a "
        "request not answered with 400, or another not with 200."
    )
    raw = {"loads": [asdict(one) for one in found], "refusals": [asdict(one) for one in refused]}
    parts: list[str | pd.DataFrame] = [about, load_table(found), "Out of bounds:", refusal_table(refused)]
    report.write(chosen.out, "load", f"Serving {suite.name} under load", parts, raw)


@contextmanager
def serving(model: str) -> Iterator[Server]:
    """A server that has loaded its model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tsvlib", "serve", model, "--port", str(port)]
    bounds = ["--most-body-bytes", str(MOST_BYTES), "--most-waiting", str(MOST_WAITING)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *bounds], stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(process, port, log)
            yield Server(process, port)
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    log.seek(0)
    raise RuntimeError(f"the server does not come up: {log.read().decode()[-1000:]}")


def _requests(suite: Suite, images: int) -> list[tuple[bytes, int]]:
    """Bodies with the status each should be answered with."""
    chance = random.Random(0)
    tasks = list(suite.tasks)
    held = {task: list(suite.images(task, "test").encoded(range(20))) for task in tasks}
    made = []
    for number in range(_POOL):
        rows = [(task, chance.choice(held[task])) for task in chance.choices(tasks, k=images)]
        bad = number % BAD_EVERY == BAD_EVERY - 1
        if bad:
            rows[-1] = (rows[-1][0], b"no image at all")
        made.append((_body(rows), 400 if bad else 200))
    return made


def _body(rows: Sequence[tuple[str, bytes]]) -> bytes:
    records = [{"image": base64.b64encode(image).decode(), "task": task} for task, image in rows]
    return json.dumps({"dataframe_records": records}).encode()


def _load(server: Server, suite: Suite, alias: str, clients: int, images: int, seconds: float) -> Load:
    pool = _requests(suite, images)
    for body, _ in pool[: 4 * len(suite.tasks)]:  # every encoder of an archive is made before the clock starts
        server.post(body)

    def client(number: int) -> list[tuple[int, int, float]]:
        chance, answers = random.Random(number), []
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        while time.perf_counter() < end:
            body, expected = chance.choice(pool)
            asked = time.perf_counter()
            answers.append((server.post(body, connection), expected, time.perf_counter() - asked))
        connection.close()
        return answers

    start = time.perf_counter()
    end = start + seconds
    with ThreadPoolExecutor(clients) as crowd:
        answers = [one for found in crowd.map(client, range(clients)) for one in found]
    took = time.perf_counter() - start
    waited = np.array([1000 * delay for _, _, delay in answers])
    statuses = dict(sorted(Counter(status for status, _, _ in answers).items()))
    wrong = sum(status != expected for status, expected, _ in answers)
    median, high = np.percentile(waited, [50, 95])
    return Load(alias, clients, images, took, statuses, wrong, float(median), float(high), server.resident_bytes)


def _refuse_bodies(server: Server, alias: str, chunked: bool) -> Refusal:
    body = bytes(3 * MOST_BYTES)
    before, peak, longest = server.resident_bytes, 0, 0.0
    statuses: Counter[str] = Counter()
    for _ in range(3):
        start = time.perf_counter()
        with ThreadPoolExecutor(1) as other:
            asked = other.submit(_status, server, body, chunked)
            while not asked.done():
                peak = max(peak, server.resident_bytes)
                time.sleep(0.01)
        statuses[asked.result()] += 1
        longest = max(longest, time.perf_counter() - start)
    what = f"body of {len(body) / 2**20:.0f} MiB, " + ("length not stated" if chunked else "length stated")
    return Refusal(alias, what, dict(statuses), longest, max(0, peak - before))


def _status(server: Server, body: bytes, chunked: bool) -> str:
    try:
        return str(server.post(body, chunked=chunked))
    except OSError:
        return "connection lost"


def _refuse_connections(server: Server, suite: Suite, alias: str) -> Refusal:
    """Half again as many connections as there are places, all of them open before the first one asks."""
    (body, _), *_ = _requests(suite, 1)
    before, count = server.resident_bytes, MOST_WAITING + MOST_WAITING // 2
    with ExitStack() as stack:
        connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=120) for _ in range(count)]
        for one in connections:
            one.connect()
            stack.callback(one.close)
        time.sleep(0.5)
        start = time.perf_counter()
        with ThreadPoolExecutor(count) as crowd:
            found = Counter(str(one) for one in crowd.map(lambda one: server.post(body, one), connections))
        took = time.perf_counter() - start
    return Refusal(alias, f"{count} connections at once", dict(found), took, max(0, server.resident_bytes - before))


def load_table(found: Sequence[Load]) -> pd.DataFrame:
    """One row a load."""
    return pd.DataFrame(
        {
            "model": one.model,
            "clients × images": f"{one.clients} × {one.images}",
            "requests/s": f"{one.requests / one.seconds:.0f}",
            "images/s": f"{one.images * one.requests / one.seconds:.0f}",
            "median, ms": f"{one.median_ms:.0f}",
            "95 %, ms": f"{one.high_ms:.0f}",
            "answers": ", ".join(f"{count} × {status}" for status, count in one.statuses.items()),
            "wrong": one.wrong,
            "resident, MB": f"{one.peak_bytes / 1e6:.0f}",
        }
        for one in found
    )


def refusal_table(found: Sequence[Refusal]) -> pd.DataFrame:
    """One row a kind of request."""
    return pd.DataFrame(
        {
            "model": one.model,
            "request": one.what,
            "answers": ", ".join(f"{count} × {status}" for status, count in sorted(one.statuses.items())),
            "longest, s": f"{one.seconds:.2f}",
            "memory, MB more": f"{one.grown_bytes / 1e6:.0f}",
        }
        for one in found
    )


if __name__ == "__main__":
    main()
