"""What a benchmark leaves behind: NAME.md for people and NAME.json for programs, in a folder."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

RESULTS = Path(__file__).parent / "results"


def options(name: str, about: str | None) -> argparse.ArgumentParser:
    """The command line of a benchmark, which takes at least the folder for its results."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser


def say(line: str) -> None:
    """Tell of progress."""
    sys.stderr.write(line + "\n")


def write(folder: Path, name: str, title: str, parts: Iterable[str | pd.DataFrame], raw: Any = None) -> None:
    """Print a report, and write it as NAME.md, with its figures as NAME.json where there are ``raw`` ones.

    Args:
        folder: where to; made if need be.
        name: of the files.
        title: of the report.
        parts: paragraphs and tables.
        raw: figures as JSON takes them.
    """
    shown = [part if isinstance(part, str) else part.to_markdown(index=False) for part in parts]
    text = "\n\n".join([f"# {title}", f"Measured on {_machine()}.", *shown]) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    if raw is not None:
        (folder / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
    sys.stdout.write(text)


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if "model name" in line]
    return f"{names[0] if names else platform.machine()}, torch {torch.__version__}, numpy {np.__version__}"
