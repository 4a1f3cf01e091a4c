"""Blobs: files that tasks hand to each other by digest; what tasks make is kept in tsvlib's store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from tsvlib.errors import CheckpointError
from tsvlib.store import default_store
from tsvlib.unchanged import known_file_digest

KIND = "made"  # of the records of what tasks made, in the store


class Blob(BaseModel):
    """A file that exists, with the SHA-256 of its bytes.

    A record of a task's result that names a file which is gone, cut or altered does not validate; Prefect then takes
    the record for a miss and runs the task again.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    digest: str
    size: int

    @model_validator(mode="after")
    def _exists_in_full(self) -> Self:
        store = default_store()
        whole = self.path.is_file() and self.path.stat().st_size == self.size
        if not whole or (self.path == store.blob(self.digest) and not store.has(self.digest)):
            raise ValueError(f"{self.path}: missing, altered, or not {self.size} bytes")
        return self

    def link(self, name: Path) -> None:
        """Make the file appear under another name too, replacing what is there: a hard link, else a copy."""
        if name.exists() and name.samefile(self.path):  # renaming one hard link over another does nothing
            return
        name.parent.mkdir(parents=True, exist_ok=True)
        temporary = name.with_name(f".{name.name}.{os.getpid()}.partial")
        temporary.unlink(missing_ok=True)
        try:
            os.link(self.path, temporary)
        except OSError:  # another file system
            temporary.write_bytes(self.path.read_bytes())
        os.replace(temporary, name)


def existing_file(path: Path) -> Blob:
    """A blob of a file that lies elsewhere; nothing is copied.

    Raises:
        CheckpointError: there is no such file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Check the path, or make it first ('dvc repro').")
    store = default_store()
    digest = path.name if path == store.blob(path.name) else known_file_digest(store, path)
    return Blob(path=path, digest=digest, size=path.stat().st_size)


def new_file(write: Callable[[Path], object]) -> Blob:
    """A blob of what ``write`` writes to the path it is given; it enters the store when whole, read-only."""
    store = default_store()
    digest = store.add(write, KIND)
    path = store.blob(digest)
    return Blob(path=path, digest=digest, size=path.stat().st_size)
