"""A comparison as one HTML page: tables, plots as data in the page itself, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from .candidate import REFERENCE, REFERENCES
from .charts import storage_plot
from .comparison import Comparison
from .comparison_charts import alpha_curves, alpha_curves_plot, difference_plot, task_map
from .report import FLAG, comparison, comparison_plot, difference_table, formatted

MOST_DRAWN = 40
"""Candidates that a plot with a line for each has room for."""
_SMALLER_IS_BETTER = ("MB", "ratio", "seconds")


@dataclass(frozen=True)
class Table:
    """Text in cells."""

    columns: list[str]
    rows: list[tuple[str, str, list[tuple[str, bool]]]]
    """Name, style, and cells with whether each is the best of its column."""


@dataclass(frozen=True)
class Plot:
    """An image as the page holds it."""

    title: str
    source: str
    """A data URI."""


def render(shown: Comparison) -> str:
    """The whole page; the same for the same comparison."""
    environment = Environment(
        loader=PackageLoader("tsvlib"), autoescape=True, trim_blocks=True, undefined=StrictUndefined
    )
    figures = comparison(shown.rows, shown.names)
    styles = {name: REFERENCE for name in REFERENCES} | ({shown.baseline: "baseline"} if shown.baseline else {})
    return environment.get_template("comparison.html").render(
        title=f"{shown.suite}: {len(shown.names)} candidates",
        about=_about(shown),
        accuracies=_table(formatted(figures, shown.rows), styles, _best(figures, formatted(figures))),
        findings=[one.message for one in shown.findings],
        baseline=shown.baseline,
        differences=_table(difference_table(shown.differences), styles) if shown.differences else None,
        plots=[Plot(title, as_data(figure)) for title, figure in _plots(shown)],
        origins=_origins(shown, styles),
    )


def as_data(figure: Figure) -> str:
    """A figure as a data URI of an SVG, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _about(shown: Comparison) -> str:
    parts = [f"{len(shown.names)} of {len(shown.summary)} candidates"]
    if shown.predictions:
        split = shown.predictions.split
        counts = {task: len(labels) for task, labels in shown.predictions.labels[split].items()}
        listed = ", ".join(f"{task} {count}" for task, count in counts.items())
        parts.append(f"{sum(counts.values())} {split} images ({listed})")
    return "; ".join([*parts, f"tsvlib {version('tsvlib')}"]) + "."


def _table(cells: pd.DataFrame, styles: Mapping[str, str], best: Mapping[str, set[str]] | None = None) -> Table:
    best = best or {}
    rows = []
    for name, row in cells.iterrows():
        marked = [(str(text), name in best.get(str(column).removesuffix(FLAG), ())) for column, text in row.items()]
        rows.append((str(name), styles.get(str(name), ""), marked))
    return Table([str(column) for column in cells.columns], rows)


def _best(figures: pd.DataFrame, text: pd.DataFrame) -> dict[str, set[str]]:
    """Column -> the best candidates that are no references, as many as look alike; none where all do."""
    choice = figures.drop(index=list(REFERENCES), errors="ignore").dropna(axis="columns", how="all")
    found = {}
    for column in text.columns.intersection(choice.columns):
        seen = text.loc[choice.index, column].str.split(" ±").str[0]
        if seen.nunique() > 1:
            values = choice[column]
            alike = seen == seen[values.idxmin() if column in _SMALLER_IS_BETTER else values.idxmax()]
            found[str(column)] = set(seen.index[alike])
    return found


def _plots(shown: Comparison) -> Iterator[tuple[str, Figure]]:
    drawn = shown.names
    if few := len(shown.names) > MOST_DRAWN:
        drawn = sorted(shown.names, key=lambda name: shown.summary[name]["accuracy_normalized"])[-MOST_DRAWN:]
    which = f", the best {MOST_DRAWN}" if few else ""
    yield f"Normalised accuracy with 95 % intervals, and size{which}", comparison_plot(shown.summary, drawn)
    curves = alpha_curves(shown.rows, shown.parameters)
    if curves:
        yield "Normalised accuracy against alpha", alpha_curves_plot(shown.summary, curves)
    if shown.differences and shown.baseline:
        chosen = {name: one for name, one in shown.differences.items() if name in drawn}
        yield f"Difference to {shown.baseline} with 95 % intervals{which}", difference_plot(chosen, shown.baseline)
    yield f"Normalised accuracy per task{which}", task_map(shown.summary, drawn[::-1])
    sizes = {round(row["bytes_ratio"], 2) for name, row in shown.rows.items() if name not in REFERENCES}
    if len(sizes) > 1:
        yield "Size against normalised accuracy", storage_plot(shown.rows)


def _setting(key: str, value: Any) -> str:
    if key == "method":
        return str(value)
    return f"{key} = {value:g}" if isinstance(value, float) else f"{key} = {value}"


def _origins(shown: Comparison, styles: Mapping[str, str]) -> Table | None:
    origins = shown.predictions.origins if shown.predictions else {}
    rows = {
        name: {
            "kind": origins[name]["kind"],
            "made by": ", ".join(_setting(*one) for one in origins[name]["parameters"].items()),
            "weights": origins[name]["digest"][:12],
        }
        for name in shown.names
        if name in origins
    }
    return _table(pd.DataFrame.from_dict(rows, orient="index"), styles) if rows else None
