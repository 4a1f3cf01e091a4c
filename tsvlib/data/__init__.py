"""Labelled images in any of the usual layouts, read as they are needed.

Each kind of data set is a file of this package that registers a reader; :func:`open_data` chooses among them.
"""

from __future__ import annotations

from .description import SPLITS, DataDescription
from .reader import Reader, Records, data_kinds, open_data

__all__ = ["SPLITS", "DataDescription", "Reader", "Records", "data_kinds", "open_data"]
