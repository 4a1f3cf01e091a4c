"""``tsv compare``"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..report import comparison, formatted, read_summary
from .options import Printing
from .printing import show


def compare(
    summary: Path | None = None,
    /,
    *,
    suite: str = "lab-8",
    format: Literal["markdown", "csv"] = "markdown",
    printing: Printing | None = None,
) -> None:
    """Print the comparison of all candidates of a suite: accuracy in per cent, megabytes, ratio to a dense encoder.

    Args:
        summary: a summary that 'tsv evaluate --out' wrote; metrics/SUITE/summary.json by default.
        suite: whose summary to read.
        format: of the table.
    """
    rows = read_summary(summary or Path("metrics") / Path(suite).stem / "summary.json")
    table = formatted(comparison(rows))
    text = table.to_csv() if format == "csv" else table.to_markdown(disable_numparse=True)
    show(rows, text, printing or Printing())
