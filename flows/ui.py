"""``make ui``: MLflow and Prefect side by side on loopback, until Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

from tasks.views import prepared_views

from .server import HOST, free_port, server_url, stop

log = logging.getLogger(__name__)

MLFLOW_PORT = 5000


def main() -> None:
    """Start both, print where they are, and wait."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with Ctrl-C ignored
        signal.signal(number, _end)
    port = free_port(MLFLOW_PORT)
    mlflow = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
            "--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"],
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a group of its own, so that its workers end with it
    )  # fmt: skip
    try:
        prefect = server_url().removesuffix("/api")
        address = f"http://{HOST}:{port}"
        wait_for(f"{address}/health", mlflow)
        log.info("MLflow:  %s/#/experiments?workflowType=machine_learning", address)
        for title, link in prepared_views(address):
            log.info("         %s: %s", title, link)
        log.info("Prefect: %s/", prefect)
        log.info("Ctrl-C ends both.")
        mlflow.wait()
    except KeyboardInterrupt:
        log.info("stopped")
    finally:
        os.killpg(mlflow.pid, signal.SIGTERM)
        mlflow.wait()
        stop()


def _end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def wait_for(url: str, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until a page answers.

    Raises:
        RuntimeError: the process ended, or the time is over.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"{url}: does not answer")


if __name__ == "__main__":
    main()
