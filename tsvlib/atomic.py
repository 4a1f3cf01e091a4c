"""Files that appear under their name only once they are whole."""

from __future__ import annotations

import errno
import glob
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import CheckpointError
from .processes import is_running

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only when the block ends without an error.

    Raises:
        CheckpointError: the disk is full or the folder not writable.
    """
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.partial")
    with clear_write_errors(path):
        file = _begun(path, temporary)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _begun(path: Path, temporary: Path) -> IO[bytes]:
    """Make room for a file and open it; whatever a file system says here is about the place, never about an input."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_remains(path)
        return temporary.open("wb")
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}. Choose another place.") from error


@contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Tell a full disk and a forbidden place in plain words.

    Raises:
        CheckpointError: in place of such an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CheckpointError(
                f"{path}: the disk is full; nothing was written. Free some space and retry."
            ) from error
        if error.errno == errno.EFBIG:
            raise CheckpointError(
                f"{path}: grows beyond the largest file allowed here; nothing was written. Raise the limit ('ulimit "
                "-f'), or write shards to a name that ends in .index.json."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise CheckpointError(f"{path}: cannot be written: {error.strerror}. Choose another place.") from error
        raise


def _clear_remains(path: Path) -> None:
    """Remove what processes that were killed left of earlier attempts at the same file."""
    for remains in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = remains.name.split(".")[-2]
        if process.isdecimal() and not is_running(int(process)):
            remains.unlink(missing_ok=True)
