"""Checkpoints on this machine: a file, a folder that holds one, or an index of shards."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError
from ..formats import choose_weights
from .location import Location, local_file


def locate_path(path: Path) -> Location:
    """A file, or the weights in a folder.

    Raises:
        CheckpointError: there is no such file, or the folder holds no weights or too many.
    """
    try:
        folder = path if path.is_dir() else path.parent
        names = [entry.name for entry in folder.iterdir() if entry.is_file()] if folder.is_dir() else []
        main = choose_weights(names, str(path)) if path.is_dir() else path.name
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check who owns it and what it is.") from error
    return Location(str(path), main, lambda name: local_file(folder / name), names)
