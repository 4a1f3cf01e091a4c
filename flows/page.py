"""What a flow run's page shows of its result: tables and plots, as Prefect artifacts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

if TYPE_CHECKING:  # a second to import, for runs that show no plot too
    from matplotlib.figure import Figure


def show_table(rows: Sequence[Mapping[str, Any]], key: str, title: str) -> None:
    """A table, a column for each key of the first row."""
    create_table_artifact([dict(row) for row in rows], key=key, description=title)


def show_plot(figure: Figure, key: str, title: str) -> None:
    """A plot, held in the artifact itself, so that the page needs no other server to show it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    image = base64.b64encode(buffer.getvalue()).decode()
    create_markdown_artifact(f"![{title}](data:image/png;base64,{image})", key=key, description=title)
