"""``make ui``: both pages answer, and both servers end with it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.services
def test_both_pages_answer_until_the_end(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "flows.ui"], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert running.stdout is not None
    pages: list[str] = []
    while len(pages) < 2 and (line := running.stdout.readline()):
        if found := re.match(r"(?:MLflow|Prefect): +(\S+)", line):
            pages.append(found[1])
    assert len(pages) == 2
    assert all(answers(page.partition("#")[0]) for page in pages)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 0
    deadline = time.monotonic() + 30
    while any(answers(page.partition("#")[0]) for page in pages) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not any(answers(page.partition("#")[0]) for page in pages)
