"""A comparison of candidates: which of them, in what order, against what baseline; the same in every format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from .guard import Finding
from .predictions import Predictions
from .report import Metrics, comparison, difference_table, differences, formatted, told, usual_order
from .search import rows_of, search
from .statistics import Difference


@dataclass(frozen=True)
class Comparison:
    """Candidates side by side."""

    suite: str
    summary: Mapping[str, Metrics]
    """Every candidate that was measured."""
    names: Sequence[str]
    """Those that are shown, in order."""
    predictions: Predictions | None = None
    baseline: str | None = None

    @property
    def rows(self) -> dict[str, Metrics]:
        """Candidate -> metrics, of those that are shown."""
        return {name: self.summary[name] for name in self.names}

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Candidate -> its method and parameters, of those of which that is known."""
        origins = self.predictions.origins if self.predictions else {}
        return {name: dict(origins[name]["parameters"]) for name in self.names if name in origins}

    @cached_property
    def findings(self) -> list[Finding]:
        """What the guard finds odd of the tasks, and of the candidates that are shown."""
        found = self.predictions.findings() if self.predictions else []
        return [one for one in found if one.doubts_task or not one.candidate or one.candidate in self.names]

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Candidate -> its difference to the baseline, image by image; none without a baseline."""
        if self.baseline is None or self.predictions is None:
            return {}
        return differences(self.predictions, self.baseline, self.names)


def compare(
    suite: str,
    summary: Mapping[str, Metrics],
    predictions: Predictions | None = None,
    *,
    baseline: str | None = None,
    condition: str | None = None,
    order: str | None = None,
) -> Comparison:
    """Choose and order candidates.

    Args:
        suite: its name.
        summary: candidate -> metrics.
        predictions: every answer; without it there are no differences, no parameters and no findings.
        baseline: what the others are compared with, image by image.
        condition: which are shown; None for all of them.
        order: None for the usual one, best last.

    Raises:
        SettingError: condition or order are not understood.
        DataError: no candidate fits, or there is no such baseline.
    """
    names = usual_order(summary)
    if condition or order:
        by_name = {row.name: row for row in rows_of(summary, predictions)}
        names = search([by_name[name] for name in names], condition, order)
    return Comparison(suite, summary, names, predictions, baseline)


def as_markdown(shown: Comparison) -> str:
    """The table, what its marks mean, and the differences."""
    table = formatted(comparison(shown.rows, shown.names), shown.rows)
    parts = [table.to_markdown(disable_numparse=True), *told(shown.findings)]
    if shown.differences:
        parts += [difference_title(shown), difference_table(shown.differences).to_markdown(disable_numparse=True)]
    return "\n".join(parts)


def as_csv(shown: Comparison) -> str:
    """Plain numbers; the differences below."""
    parts = [comparison(shown.rows, shown.names).round(4).to_csv()]
    if shown.differences:
        parts.append(difference_table(shown.differences).to_csv())
    return "\n".join(parts)


def as_json(shown: Comparison) -> str:
    """The metrics as they were measured, and the differences."""
    return json.dumps(content(shown), indent=2)


def content(shown: Comparison) -> dict[str, Any]:
    """What there is to say, for scripts."""
    if not shown.differences:
        return dict(shown.rows)
    found = {name: asdict(one) for name, one in shown.differences.items()}
    return {"candidates": shown.rows, "baseline": shown.baseline, "differences": found}


def as_html(shown: Comparison) -> str:
    """One page with tables and plots that needs nothing beside itself."""
    from .html_report import render  # loads matplotlib's renderer

    return render(shown)


def difference_title(shown: Comparison) -> str:
    """What stands above the differences."""
    return f"\nDifference to {shown.baseline} in percentage points, with 95 % intervals:\n"


Format = Callable[[Comparison], str]
FORMATS: dict[str, Format] = {"markdown": as_markdown, "csv": as_csv, "json": as_json, "html": as_html}
SUFFIXES = {".md": "markdown", ".csv": "csv", ".json": "json", ".html": "html"}
"""Of a file -> the format that it is written in."""
