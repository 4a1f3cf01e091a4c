"""Checkpoints that appear in a folder or below a URI, and whether each is whole."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from tsvlib.checkpoint import open_location
from tsvlib.errors import CheckpointError
from tsvlib.sources import locate, scheme_of

from .fetch import IO

WHOLE = "whole"
GROWING = "still being written"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class Arrival(BaseModel):
    """A file that was found."""

    model_config = ConfigDict(frozen=True)

    task: str
    uri: str
    size: int
    state: str
    """:data:`WHOLE`, :data:`GROWING`, or what is wrong with it."""


@task(cache_policy=NO_CACHE, **IO)
def find_arrivals(folder: str, base: str, settle_seconds: float) -> list[Arrival]:
    """Every checkpoint in a folder but the base, by name; of each, no more than the header is read.

    Args:
        folder: path or URI.
        base: path or URI of a checkpoint that is none of them.
        settle_seconds: a file that changed within this time is taken to be still growing.

    Raises:
        CheckpointError: there is no such folder.
    """
    filesystem, root = fsspec.core.url_to_fs(folder)
    try:
        listed = filesystem.ls(root, detail=True, refresh=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder}: no such folder. Give the one where checkpoints appear.") from error
    start, arrivals = _uri(folder, filesystem.unstrip_protocol(filesystem._strip_protocol(base))), []
    for entry in sorted(listed, key=lambda entry: str(entry["name"])):
        name = str(entry["name"]).rstrip("/").rpartition("/")[2]
        if entry["type"] != "file" or name.startswith(".") or not name.endswith(SUFFIXES):
            continue
        uri = _uri(folder, filesystem.unstrip_protocol(entry["name"]))
        if uri != start:
            task, _, _ = name.rpartition(".")
            arrivals.append(Arrival(task=task, uri=uri, size=entry["size"], state=_state(uri, entry, settle_seconds)))
    return arrivals


def _state(uri: str, entry: dict[str, Any], settle_seconds: float) -> str:
    changed = entry.get("mtime") or entry.get("LastModified")
    changed = changed.timestamp() if isinstance(changed, datetime) else changed
    if changed is not None and time.time() - changed < settle_seconds:
        return GROWING
    try:
        open_location(locate(uri))
    except CheckpointError as error:
        return str(error)
    return WHOLE


def _uri(folder: str, found: str) -> str:
    """As the folder was written: a path for a path."""
    return str(Path(found.removeprefix("file://"))) if scheme_of(folder) == "file" else found
