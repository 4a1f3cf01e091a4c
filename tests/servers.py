"""Real servers on loopback, each in a folder and on a port of its own, ended with the block that started them."""

from __future__ import annotations

import glob
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS_TO_START = 240  # on a machine that others use as well


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def page_answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except (urllib.error.URLError, OSError):
        return False


def wait_for(condition: Callable[[], Any], seconds: float = SECONDS_TO_START, pause: float = 0.5) -> Any:
    """The first true value of a condition; fails the test if there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(pause)
    pytest.fail(f"not so after {seconds} seconds: {condition}")


@contextmanager
def running(command: list[str], folder: Path, environment: Mapping[str, str], log: str) -> Iterator[subprocess.Popen]:
    """A process group that lives as long as the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / log).open("ab") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(timeout=20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


@contextmanager
def prefect_server(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Its API's address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, folder, {**environment, "PREFECT_API_URL": url}, "server.log") as process:
        wait_for(lambda: process.poll() is not None or page_answers(f"{url}/health"))
        assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
        yield url


@contextmanager
def dask_cluster(folder: Path, environment: Mapping[str, str], workers: int = 2) -> Iterator[str]:
    """Scheduler and workers of one thread, each a process that starts in another folder than the flow's."""
    port = free_port()
    dask = [sys.executable, "-m", "dask"]
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [*dask, "worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1", "--nworkers", "1", "--no-dashboard"]
    with ExitStack() as stack:
        stack.enter_context(running(scheduler, folder, environment, "scheduler.log"))
        wait_for(lambda: port_answers(port))
        for number in range(workers):
            stack.enter_context(running(worker, folder / f"worker-{number}", environment, "worker.log"))
            log = folder / f"worker-{number}" / "worker.log"
            wait_for(
                lambda log=log: "Starting established connection" in log.read_text() or "Registered" in log.read_text()
            )
        yield f"dask://127.0.0.1:{port}"


@contextmanager
def ray_cluster(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """One node of two workers."""
    port = 20000 + free_port() % 5000  # outside of Ray's range for workers
    short = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets allow no long paths
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address", "127.0.0.1",
        "--port", str(port), "--num-cpus", "2", "--include-dashboard", "false", "--disable-usage-stats",
        "--object-store-memory", "100000000", "--temp-dir", str(short),
    ]  # fmt: skip
    environment = {**environment, "RAY_worker_niceness": "0"}
    try:
        with running(command, folder, environment, "ray.log"):
            wait_for(lambda: "Ray runtime started" in (folder / "ray.log").read_text())
            yield f"ray://127.0.0.1:{port}"
    finally:
        shutil.rmtree(short, ignore_errors=True)


def postgres_binaries() -> Path:
    """Where initdb lies; skips where PostgreSQL is not installed, which CI does install."""
    found = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed: .ci/run should have done it")
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return Path(found).resolve().parent


@contextmanager
def postgres(databases: list[str]) -> Iterator[str]:
    """A cluster of its own, run by a user that is not root; yields ``user@host:port``."""
    binaries, port = postgres_binaries(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    as_user: list[str] = []
    user = pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() == 0:  # which PostgreSQL refuses
        user = "postgres"
        shutil.chown(folder, user)
        as_user = ["runuser", "-u", user, "--"]
    data = folder / "data"
    try:
        options = ["-A", "trust", "-U", "tsv", "-E", "UTF8", "--no-sync"]
        subprocess.run([*as_user, str(binaries / "initdb"), "-D", str(data), *options], check=True, capture_output=True)
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-p", str(port)]
        command = [*as_user, str(binaries / "postgres"), "-D", str(data), *settings]
        with running(command, folder / "log", os.environ, "postgres.log"):
            wait_for(lambda: port_answers(port))
            for name in databases:
                create = [str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "tsv", name]
                wait_for(lambda create=create: subprocess.run(create, capture_output=True).returncode == 0, 60)
            yield f"tsv@127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def s3_server(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """moto's S3, at an endpoint."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with running(command, folder, environment, "s3.log"):
        wait_for(lambda: port_answers(port))
        yield f"http://127.0.0.1:{port}"


@contextmanager
def mlflow_server(folder: Path, environment: Mapping[str, str], *options: str) -> Iterator[str]:
    """Its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with running([*command, *options], folder, environment, "mlflow.log") as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or page_answers(f"{url}/health"))
        assert process.poll() is None, (folder / "mlflow.log").read_text()[-3000:]
        yield url


class PrefectApi:
    """The server's own HTTP interface, as its pages use it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, content: Any) -> Any:
        """Raises ``urllib.error.HTTPError`` with the server's answer for a refusal."""
        body = json.dumps(content).encode()
        request = urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
        return json.loads(text) if text else None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=60) as response:
            return json.load(response)

    def trigger(self, deployment: str, **parameters: Any) -> str:
        """Id of the new run."""
        found = self.get(f"/deployments/name/{deployment}")
        wanted = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.post(f"/deployments/{found['id']}/create_flow_run", wanted)["id"]

    def state(self, run: str) -> str:
        return self.get(f"/flow_runs/{run}")["state"]["type"]

    def finished(self, run: str, seconds: float = 300) -> dict[str, Any]:
        """The run, once it has come to an end."""
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_for(lambda: self.state(run) in ends, seconds, 1)
        return self.get(f"/flow_runs/{run}")

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        found = self.get(f"/deployments/name/{deployment}")
        return self.post("/flow_runs/filter", {"deployments": {"id": {"any_": [found["id"]]}}})

    def task_runs(self, run: str) -> list[dict[str, Any]]:
        return self.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 200})

    def artifacts(self, run: str) -> list[dict[str, Any]]:
        return self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}, "limit": 200})
