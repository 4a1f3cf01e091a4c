"""``tsv compare``"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ..predictions import read_predictions
from ..report import comparison, difference_table, differences, formatted, read_summary, told
from .options import Printing
from .printing import show


def compare(
    summary: Path | None = None,
    /,
    *,
    suite: str = "lab-8",
    baseline: str | None = None,
    predictions: Path | None = None,
    format: Literal["markdown", "csv"] = "markdown",
    printing: Printing | None = None,
) -> None:
    """Print the comparison of all candidates of a suite: accuracy in per cent, megabytes, ratio to a dense encoder.

    Means are followed by ± half their 95 % interval; ! marks what the guard finds odd.

    Args:
        summary: a summary that 'tsv evaluate --out' wrote; metrics/SUITE/summary.json by default.
        suite: whose summary to read.
        baseline: also print every other candidate's difference to this one, image by image, with intervals and tests.
        predictions: the answers that the summary was computed from; beside the summary, or predictions/SUITE.parquet.
        format: of the table; csv has plain numbers.
    """
    name = Path(suite).stem
    rows = read_summary(summary or Path("metrics") / name / "summary.json")
    answers = predictions or (summary.with_suffix(".parquet") if summary else Path("predictions") / f"{name}.parquet")
    record = read_predictions(answers) if baseline or answers.is_file() else None
    result: dict[str, Any] = dict(rows)
    if format == "csv":
        parts = [comparison(rows).round(4).to_csv()]
    else:
        parts = [formatted(comparison(rows), rows).to_markdown(disable_numparse=True)]
        parts += told(record.findings()) if record else []
    if baseline and record:
        compared = differences(record, baseline)
        table = difference_table(compared)
        title = f"\nDifference to {baseline} in percentage points, with 95 % intervals:\n"
        parts += [table.to_csv()] if format == "csv" else [title, table.to_markdown(disable_numparse=True)]
        result = {"candidates": rows, "baseline": baseline, "differences": {n: asdict(d) for n, d in compared.items()}}
    show(result, "\n".join(parts), printing or Printing())
