"""The commit that is checked out, for records of how something was made."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit(folder: Path) -> str | None:
    """The commit (40 hex digits) checked out where a folder lies; None where git tracks no file of that folder."""
    tracked, commit = _git(folder, "ls-files"), _git(folder, "rev-parse", "HEAD")
    return commit if tracked and commit else None


def _git(folder: Path, *words: str) -> str | None:
    try:
        found = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed, or does not answer
        return None
    return found.stdout.strip() if found.returncode == 0 else None
