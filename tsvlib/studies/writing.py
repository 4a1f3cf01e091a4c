"""What a study leaves behind: NAME.csv and a plot, and for several of them a page that shows all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import matplotlib

from ..atomic import atomic_write
from .registry import Outcome, get_study

PlotFormat = Literal["svg", "png"]
PAGE = "studies.md"


def files_of(name: str, formats: Sequence[PlotFormat]) -> list[str]:
    """Names of the files of a study: its table, then its plots."""
    return [f"{name}.{suffix}" for suffix in ("csv", *formats)]


def write(folder: Path, name: str, outcome: Outcome, formats: Sequence[PlotFormat]) -> None:
    """Write a study's table and plots; the same outcome gives the same bytes."""
    with atomic_write(folder / f"{name}.csv") as file:
        file.write(outcome.table.to_csv(index=False).encode())
    for suffix in formats:
        about = {"Date": None} if suffix == "svg" else {"Software": None}
        with matplotlib.rc_context({"svg.hashsalt": "tsvlib"}), atomic_write(folder / f"{name}.{suffix}") as file:
            outcome.figure.savefig(file, format=suffix, dpi=110, metadata=about)  # type: ignore[arg-type]


def write_page(folder: Path, title: str, outcomes: Mapping[str, Outcome], plot: PlotFormat) -> None:
    """Write a page with the tables and plots of several studies, which lie beside it."""
    parts = [f"# {title}"]
    for name, outcome in outcomes.items():
        study = get_study(name)
        table = outcome.shown.to_markdown(index=False, disable_numparse=True)
        parts += [f"## {name}", f"{study.question} The paper: {study.paper}.", table, f"![{name}]({name}.{plot})"]
    with atomic_write(folder / PAGE) as file:
        file.write(("\n\n".join(parts) + "\n").encode())
