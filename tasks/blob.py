"""Blobs: files that tasks hand to each other by digest, kept in a content-addressed store."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from tsvlib.errors import CheckpointError

STORE_VARIABLE = "TSV_STORE"


def store() -> Path:
    """The store's folder: $TSV_STORE, else .tsv/store below the current folder."""
    return Path(os.environ.get(STORE_VARIABLE, ".tsv/store")).absolute()


class Blob(BaseModel):
    """A file that exists, with the SHA-256 of its bytes.

    A record of a task's result that names a file which is gone or of another size does not validate; Prefect then
    takes the record for a miss and runs the task again.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    digest: str
    size: int

    @model_validator(mode="after")
    def _exists_in_full(self) -> Self:
        if not self.path.is_file() or self.path.stat().st_size != self.size:
            raise ValueError(f"{self.path}: missing, or not {self.size} bytes")
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
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Blob(path=path, digest=digest, size=path.stat().st_size)


def new_file(write: Callable[[Path], object], suffix: str = ".safetensors") -> Blob:
    """A blob of what ``write`` writes to the path it is given; it enters the store when whole, read-only."""
    folder = store() / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        written = Path(scratch) / f"file{suffix}"
        write(written)
        found = existing_file(written)
        final = folder / f"{found.digest}{suffix}"
        written.chmod(0o444)  # hard links of it stand elsewhere; nobody may write into them
        os.replace(written, final)
    return Blob(path=final, digest=found.digest, size=found.size)
