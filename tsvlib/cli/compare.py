"""``tsv compare``"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from cyclopts import Parameter
from rich.text import Text

from ..atomic import atomic_write
from ..comparison import FORMATS, SUFFIXES, Comparison, content, difference_title
from ..comparison import compare as choose
from ..errors import SettingError, did_you_mean
from ..predictions import read_predictions
from ..published import beside_published, family_title, reservations, tasks_beside_published
from ..report import Metrics, comparison, difference_table, formatted, read_summary, told
from ..suite import load_suite
from .options import Printing, output_path
from .printing import show


def compare(
    summary: Path | None = None,
    /,
    *,
    suite: str = "lab-8",
    baseline: str | None = None,
    filter: str | None = None,
    sort: str | None = None,
    predictions: Path | None = None,
    against: Literal["paper"] | None = None,
    format: Literal["terminal", "markdown", "csv", "json", "html"] | None = None,
    out: Annotated[list[Path] | None, Parameter(negative=())] = None,
    force: bool = False,
    printing: Printing | None = None,
) -> None:
    """Show the candidates of a suite side by side: accuracy in per cent, megabytes, ratio to a dense encoder.

    Means are followed by ± half their 95 % interval; ! marks what the guard finds odd.

    Args:
        summary: a summary that 'tsv evaluate --out' or 'tsv sweep' wrote; metrics/SUITE/summary.json by default.
        suite: whose summary to read.
        baseline: also show every other candidate's difference to this one, image by image, with intervals and tests.
        filter: show those that fit, in MLflow's search syntax: "metrics.accuracy > 0.7 and params.method = 'tsv-m'".
        sort: by a metric, ascending or not: "accuracy_normalized desc", "metrics.bytes"; best last by default.
        predictions: the answers that the summary was computed from; beside the summary, or predictions/SUITE.parquet.
        against: print the published figures of the suite beside those of the summary, in place of the comparison.
        format: to print; on a terminal 'terminal', elsewhere 'markdown'. csv has plain numbers.
        out: write to a file in place of printing, as its name says: .md, .csv, .json or .html; repeat for several.
        force: replace files that exist.
    """
    printing = printing or Printing()
    files = {file: SUFFIXES[_suffix(output_path(file, force))] for file in out or []}
    name = Path(suite).stem
    rows = read_summary(summary or Path("metrics") / name / "summary.json")
    if against:
        return _beside_published(rows, suite, format, printing)
    answers = predictions or (summary.with_suffix(".parquet") if summary else Path("predictions") / f"{name}.parquet")
    record = read_predictions(answers) if baseline or predictions or answers.is_file() else None
    title = record.suite if record else name
    shown = choose(title, rows, record, baseline=baseline, condition=filter, order=sort)
    for file, written in files.items():
        with atomic_write(file) as opened:
            opened.write(FORMATS[written](shown).rstrip("\n").encode() + b"\n")
    if files and not printing.json:
        return show({}, f"{', '.join(map(str, files))}: {len(shown.names)} candidates of {title}", printing)
    chosen = format or ("terminal" if sys.stdout.isatty() else "markdown")
    text = _for_terminal(shown) if chosen == "terminal" else Text(FORMATS[chosen](shown))  # of which rich reads nothing
    show(content(shown), text, printing)


def _suffix(file: Path) -> str:
    if file.suffix not in SUFFIXES:
        raise SettingError(f"--out {file}: its ending says no format.{did_you_mean(file.suffix, SUFFIXES)}")
    return file.suffix


def _for_terminal(shown: Comparison) -> str:
    parts = [_folded(formatted(comparison(shown.rows, shown.names), shown.rows)), *told(shown.findings)]
    if shown.differences:
        parts += [difference_title(shown), _folded(difference_table(shown.differences))]
    return "\n".join(parts)


def _folded(table: pd.DataFrame) -> str:
    """Columns that do not fit beside the others stand below, the candidates before them again."""
    return table.to_string(line_width=shutil.get_terminal_size().columns)


def _beside_published(rows: Mapping[str, Metrics], suite: str, format: str | None, printing: Printing) -> None:
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
