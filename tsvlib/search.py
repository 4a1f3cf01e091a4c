"""Choosing and ordering candidates by what is written about them, in the search syntax of a tracking tool.

The syntax is not this library's. A package brings it with an entry point of the group ``tsvlib.search``: a function
from (rows, condition or None, order or None) to the names of the rows that fit, in order. The one that is installed
with this library is MLflow's (``tasks/search.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points

from .errors import DataError, SettingError
from .predictions import Predictions
from .report import Metrics

ENTRY_POINTS = "tsvlib.search"


@dataclass(frozen=True)
class Row:
    """One candidate, as a search sees it."""

    name: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def rows_of(summary: Mapping[str, Metrics], predictions: Predictions | None) -> list[Row]:
    """A row a candidate; without the record of its answers, only its metrics are known, and its name as the method."""
    origins = predictions.origins if predictions else {}
    rows = []
    for name, metrics in summary.items():
        origin = origins.get(name, {})
        parameters = {key: str(value) for key, value in {"method": name, **origin.get("parameters", {})}.items()}
        tags = {"kind": origin.get("kind", ""), "candidate_digest": origin.get("digest", "")}
        rows.append(Row(name, metrics, parameters, {key: value for key, value in tags.items() if value}))
    return rows


def search(rows: Sequence[Row], condition: str | None = None, order: str | None = None) -> list[str]:
    """Names of the rows that fit a condition, in an order.

    Raises:
        SettingError: condition or order are not understood, name what no row has, or no package brings a search.
        DataError: no row fits.
    """
    plug_ins = entry_points(group=ENTRY_POINTS)
    if not plug_ins:
        raise SettingError("no search is installed: install the whole project ('make setup' in its folder).")
    found: list[str] = next(iter(plug_ins)).load()(rows, condition, order)
    if not found:
        raise DataError(f"{condition!r} fits none of the {len(rows)} candidates.")
    return found
