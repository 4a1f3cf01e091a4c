"""``tsv inspect``"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from ..checkpoint import open_checkpoint
from ..provenance import inspect_checkpoint
from .options import Printing
from .printing import progress, show


def inspect(checkpoint: str, /, *, printing: Printing | None = None) -> None:
    """Show what a weights file holds and where it comes from.

    Args:
        checkpoint: a path or URI of any weights file.
    """
    printing = printing or Printing()
    with progress("fetch", printing) as report:
        opened = open_checkpoint(checkpoint, report)
    found = inspect_checkpoint(opened)
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a digest is copied whole or not at all
    for name, value in _rows(found):
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    show(found, table, printing)


def _rows(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as lines of dotted names."""
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value
