"""Where a checkpoint lies: a file that can be read from any position, and the files beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError
from .failures import clear_errors


@dataclass(frozen=True)
class File:
    """A file here or elsewhere.

    Args:
        uri: how messages name it.
        open: opens it for reading; seekable, reads what is asked for and no more.
        size: bytes; None if the source does not tell.
        path: where it lies, if it lies on this machine.
        sha256: 64 hex digits, if the source or the user states them.
        version: changes whenever the content does, as far as the source can tell; "" if it cannot.
    """

    uri: str
    open: Callable[[], BinaryIO]
    size: int | None
    path: Path | None = None
    sha256: str | None = None
    version: str = ""

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open it for reading, a client library's errors told in plain words.

        Raises:
            CheckpointError: it cannot be read.
        """
        with clear_errors(self.uri) if self.path is None else nullcontext(), self.open() as opened:
            yield opened


@dataclass(frozen=True)
class Location:
    """A checkpoint's main file, and how to reach the files in the same folder.

    Args:
        uri: as the user wrote it.
        main: name of the weights file, or of the index of a sharded checkpoint.
        file: finds a file of the folder by name.
        names: the files of the folder, as far as the source can list them.
        about: what the source tells of the model beyond its weights, such as ``activation``.
    """

    uri: str
    main: str
    file: Callable[[str], File]
    names: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


def local_file(path: Path) -> File:
    """A file on this machine.

    Raises:
        CheckpointError: it is missing or may not be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint. Check the path, or make it first ('dvc repro').") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Check who owns it and what it is.") from error
    return File(str(path), lambda: path.open("rb"), size, path)
