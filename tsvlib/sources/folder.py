"""Folders that are named by a URI, such as a model in a registry.

A package adds a scheme with an entry point of the group ``tsvlib.folders``: its name is the scheme, its object a
function from a URI to the path of a folder on this machine.
"""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

from ..errors import CheckpointError

ENTRY_POINTS = "tsvlib.folders"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/")


def local_folder(uri: str | Path) -> Path:
    """The folder that a path or URI names, brought to this machine if it lies elsewhere.

    Raises:
        CheckpointError: there is nothing there, or no such scheme.
    """
    found = _SCHEME.match(str(uri))
    if not found:
        return Path(uri)
    for plug_in in entry_points(group=ENTRY_POINTS, name=found[1]):
        return Path(plug_in.load()(str(uri)))
    known = sorted({plug_in.name for plug_in in entry_points(group=ENTRY_POINTS)})
    raise CheckpointError(f"{uri}: folders are read from a path, or from {', '.join(f'{one}:/' for one in known)}.")
