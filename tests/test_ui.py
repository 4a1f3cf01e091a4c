"""``make ui``: both pages answer, and both servers end with it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from conftest import clean_environment

ROOT = Path(__file__).parents[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.services
def test_both_pages_answer_until_the_end(tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "flows.ui"], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=clean_environment(tmp_path, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    try:
        assert running.stdout is not None
        pages: list[str] = []
        while len(pages) < 2 and (line := running.stdout.readline()):
            if found := re.match(r"(?:MLflow|Prefect): +(\S+)", line):
                pages.append(found[1].partition("#")[0])
        assert len(pages) == 2
        assert all(answers(page) for page in pages)
    finally:
        running.send_signal(signal.SIGINT)
        status = running.wait(timeout=60)
    assert status == 0
    deadline = time.monotonic() + 30
    while any(answers(page) for page in pages) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not any(answers(page) for page in pages)
