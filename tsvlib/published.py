"""Published figures of the suites, beside one's own: what is comparable with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from .errors import DataError

_FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """A figure that somebody published. Accuracies in per cent."""

    candidate: str
    family: str
    """Whose checkpoints it was measured on."""
    source: str
    accuracy: float
    normalised: float | None
    tasks: Mapping[str, float]
    """Accuracy of each task, where published."""


@cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))


def published_suites() -> list[str]:
    """Suites of which there are published figures."""
    return list(dict.fromkeys(suite for block in _content()["figures"] for suite in block["suites"]))


def published(suite: str) -> list[Published]:
    """All published figures of a suite.

    Raises:
        DataError: there are none.
    """
    content = _content()
    of_tasks = {
        (block["family"], candidate): dict(zip(content["tasks"], figures, strict=False))
        for block in content["per_task"]
        for candidate, figures in block["suites"].get(suite, {}).items()
    }
    found = [
        Published(
            candidate,
            block["family"],
            content["sources"][block["source"]],
            figures[0],
            figures[1] if len(figures) > 1 else None,
            of_tasks.get((block["family"], candidate), {}),
        )
        for block in content["figures"]
        for candidate, figures in block["suites"].get(suite, {}).items()
    ]
    if not found:
        raise DataError(f"suite {suite!r}: nothing was published of it. Published are {', '.join(published_suites())}.")
    return found


def family_title(family: str) -> str:
    """Whose checkpoints these are, in words."""
    return _content()["families"].get(family, {}).get("title", family)


def reservations(family: str) -> dict[str, str]:
    """Task -> what is wrong with a family's published figures, or different from the paper's protocol."""
    described = _content()["families"].get(family, {})
    return described.get("faults", {}) | described.get("differences", {})


def beside_published(summary: Mapping[str, Mapping[str, float]], suite: str, family: str) -> pd.DataFrame:
    """One row for each published figure, with one's own beside it. Per cent; NaN where there is none.

    Args:
        summary: candidate -> metrics, as an evaluation wrote them (accuracies 0 to 1).
        suite: its name.
        family: whose checkpoints the suite names.

    Raises:
        DataError: nothing was published of the suite.
    """
    rows = []
    for figure in published(suite):
        own = summary.get(figure.candidate, {})
        comparable = figure.family == family
        measured, normalised = (100 * own.get(key, float("nan")) for key in ("accuracy", "accuracy_normalized"))
        other = float("nan") if figure.normalised is None else figure.normalised
        rows.append(
            {
                "candidate": figure.candidate,
                "checkpoints": figure.family,
                "same": "yes" if comparable else "no",
                "mean": measured,
                "published": figure.accuracy,
                "difference": measured - figure.accuracy if comparable else float("nan"),
                "normalised": normalised,
                "published normalised": other,
                "normalised difference": normalised - other,
                "source": figure.source,
            }
        )
    order = {name: place for place, name in enumerate(dict.fromkeys(row["candidate"] for row in rows))}
    rows.sort(key=lambda row: (order[row["candidate"]], row["same"] == "no"))
    return pd.DataFrame(rows).set_index("candidate")


def tasks_beside_published(summary: Mapping[str, Mapping[str, float]], suite: str) -> pd.DataFrame:
    """Accuracy of each task: a row for every candidate of one's own and for every published figure that has it."""
    rows = {}
    figures = [figure for figure in published(suite) if figure.tasks]
    for candidate in dict.fromkeys(figure.candidate for figure in figures):
        if own := {
            key.removeprefix("accuracy/"): 100 * value
            for key, value in summary.get(candidate, {}).items()
            if key.startswith("accuracy/")
        }:
            rows[f"{candidate}, measured"] = own
        rows |= {f"{one.candidate}, {one.family}": dict(one.tasks) for one in figures if one.candidate == candidate}
    return pd.DataFrame.from_dict(rows, orient="index")
