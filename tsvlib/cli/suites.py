"""``tsv suites``"""

from __future__ import annotations

from rich.table import Table

from ..suite import load_suite, packaged_suites
from .options import Printing
from .printing import show


def suites(*, printing: Printing | None = None) -> None:
    """List the suites that come with the package."""
    loaded = [load_suite(name) for name in packaged_suites()]
    table = Table("suite", "tasks", "description")
    for suite in loaded:
        table.add_row(suite.name, str(len(suite.tasks)), suite.description)
    show({"suites": [suite.model_dump() for suite in loaded]}, table, printing or Printing())
