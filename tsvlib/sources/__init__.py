"""Sources of checkpoints, by the scheme of their URI."""

from __future__ import annotations

from pathlib import Path

from .local import locate_path
from .location import File, Location

__all__ = ["File", "Location", "locate"]


def locate(uri: str | Path) -> Location:
    """Find where a checkpoint lies.

    Args:
        uri: a path or a URI.

    Raises:
        CheckpointError: there is nothing there, or it cannot be reached.
    """
    return locate_path(Path(str(uri).removeprefix("file://")))
