"""The local Prefect server: started beside the work where none answers, and left running for the next flow.

``python -m flows.server start|stop|status``
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock

from tsvlib.processes import is_running

log = logging.getLogger(__name__)

HOST, USUAL_PORT = "127.0.0.1", 4200
SECONDS_TO_START = 300  # on a machine that others use as well; a dead one is noticed at once


def server_url() -> str:
    """The API address of a server that answers: the one of PREFECT_API_URL, else the local one, started if need be.

    Raises:
        RuntimeError: PREFECT_API_URL is set and nothing answers there, or the local server does not come up.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        if not answers(url):
            raise RuntimeError(
                f"PREFECT_API_URL={url}: no Prefect server answers there. Start it, or unset the variable."
            )
        return url
    _state_file().parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_state_file().with_suffix(".lock")):
        state = _state()
        if state and _answers_in_time(state):  # a busy server may take its time; only a dead one is replaced
            return str(state["url"])
        return _start()


def stop() -> bool:
    """Stop the local server that ``server_url`` started; False if there is none."""
    state = _state()
    _state_file().unlink(missing_ok=True)
    if state is None or not answers(state["url"]):
        return False
    os.killpg(state["pid"], signal.SIGTERM)
    for _ in range(100):
        if not answers(state["url"]):
            break
        time.sleep(0.1)
    return True


def _state_file() -> Path:
    return Path(os.environ["PREFECT_HOME"]) / "server.json"


def _state() -> dict | None:
    file = _state_file()
    return json.loads(file.read_text()) if file.exists() else None


def _start() -> str:
    """Start a server in a process group of its own and wait until it answers."""
    port = free_port(USUAL_PORT)
    url = f"http://{HOST}:{port}/api"
    log.info("starting a local Prefect server on %s (it stays up; stop it with 'make stop')", url)
    output = (_state_file().parent / "server.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)],
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "PREFECT_API_URL": url, "PREFECT_UI_API_URL": url},
    )
    state = {"pid": process.pid, "url": url}
    _state_file().write_text(json.dumps(state))
    if not _answers_in_time(state):
        raise RuntimeError(f"the local Prefect server did not come up; {output.name} says why.")
    return url


def _answers_in_time(state: dict) -> bool:
    """Whether a server answers within the time that one may take to start; False at once if its process is gone."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if answers(state["url"]):
            return True
        if not is_running(state["pid"]):
            return False
        time.sleep(0.2)
    return False


def free_port(usual: int) -> int:
    """The usual port, or any free one where that is taken."""
    for port in (usual, 0):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError("no free port on the loopback address")


def is_local(url: str) -> bool:
    """Whether an address is that of the local server that :func:`server_url` starts, not one of the user's."""
    state = _state()
    return state is not None and state["url"] == url


def answers(url: str) -> bool:
    """Whether a server is well."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    match sys.argv[1:]:
        case ["start"]:
            log.info("Prefect server: %s", server_url())
        case ["stop"]:
            log.info("stopped" if stop() else "no local server was running")
        case ["status"]:
            current = _state()
            log.info("%s", current["url"] if current and answers(current["url"]) else "not running")
        case _:
            sys.exit("usage: python -m flows.server start|stop|status")
