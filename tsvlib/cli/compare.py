"""``tsv compare``"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ..predictions import read_predictions
from ..published import beside_published, family_title, reservations, tasks_beside_published
from ..report import Metrics, comparison, difference_table, differences, formatted, read_summary, told
from ..suite import load_suite
from .options import Printing
from .printing import show


def compare(
    summary: Path | None = None,
    /,
    *,
    suite: str = "lab-8",
    baseline: str | None = None,
    predictions: Path | None = None,
    against: Literal["paper"] | None = None,
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
        against: print the published figures of the suite beside those of the summary, in place of the comparison.
        format: of the table; csv has plain numbers.
    """
    name = Path(suite).stem
    rows = read_summary(summary or Path("metrics") / name / "summary.json")
    if against:
        return _beside_published(rows, suite, format, printing or Printing())
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


def _beside_published(rows: Mapping[str, Metrics], suite: str, format: str, printing: Printing) -> None:
    loaded = load_suite(suite)
    table = beside_published(rows, loaded.name, loaded.family)
    tasks = tasks_beside_published(rows, loaded.name)
    result = {"figures": _as_json(table), "tasks": _as_json(tasks)}
    if format == "csv":
        return show(result, table.round(4).to_csv(), printing)
    text = [_markdown(table), "", _markdown(tasks), ""]
    for family in dict.fromkeys([*filter(None, [loaded.family]), *table["checkpoints"]]):
        text.append(f"{family}: {family_title(family)}" + (", as measured here" if family == loaded.family else ""))
        text += [f"  {task}: {reservation}" for task, reservation in reservations(family).items()]
    text.append("Means are comparable where the checkpoints are the same; elsewhere only normalised ones, roughly.")
    show(result, "\n".join(text), printing)


def _markdown(table: pd.DataFrame) -> str:
    words = table.map(lambda value: value if isinstance(value, str) else "" if pd.isna(value) else f"{value:.2f}")
    return words.to_markdown(disable_numparse=True)


def _as_json(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.reset_index(names="candidate").to_dict("records")
    return [{str(name): None if pd.isna(value) else value for name, value in row.items()} for row in rows]
