"""Sources of checkpoints, by the scheme of their URI.

A package adds a scheme with an entry point of the group ``tsvlib.sources``: its name is the scheme, its object a
function from a URI to a :class:`Location`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from .about import DESCRIPTIONS, about_model, about_open_clip, as_about
from .failures import check_online, clear_errors
from .hub import locate_on_hub
from .local import locate_path
from .location import File, Location, local_file
from .open_clip import locate_open_clip
from .remote import locate_with_fsspec, remote_file

__all__ = [
    "DESCRIPTIONS", "ENTRY_POINTS", "File", "Location", "about_model", "about_open_clip", "as_about", "check_online",
    "clear_errors", "local_file", "locate", "locate_path", "remote_file", "scheme_of",
]  # fmt: skip

Locate = Callable[[str], Location]
ENTRY_POINTS = "tsvlib.sources"

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/")
_BUILT_IN: dict[str, Locate] = {
    "file": lambda uri: locate_path(Path(uri.removeprefix("file://"))),
    "hf": locate_on_hub,
    "open-clip": locate_open_clip,
}


def scheme_of(uri: str | Path) -> str:
    """The scheme of a URI; ``file`` for a path."""
    match = _SCHEME.match(str(uri))
    return match[1] if match else "file"


def locate(uri: str | Path) -> Location:
    """Find where a checkpoint lies, fetching no weights.

    Args:
        uri: a path or a URI.

    Raises:
        CheckpointError: there is nothing there, or it may not be read.
        UnreachableError: it does not answer, or this machine is offline.
    """
    scheme = scheme_of(uri)
    if scheme in _BUILT_IN:
        return _BUILT_IN[scheme](str(uri))
    for plug_in in entry_points(group=ENTRY_POINTS, name=scheme):
        return plug_in.load()(str(uri))
    return locate_with_fsspec(str(uri))
