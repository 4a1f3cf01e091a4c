"""Fetching files into the store: each is fetched once for all suites, and a broken connection goes on where it stopped.

In the store, records of the kind ``fetched`` say which content an address and version stand for, those of the
kind ``locations`` which files a URI stood for; ``partial/`` holds what has come so far of files still being fetched.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from .atomic import clear_write_errors
from .errors import CheckpointError, UnreachableError
from .progress import Progress
from .sources.failures import clear_errors, status_of
from .sources.location import File, Location
from .store import Store, default_store, digest_of

log = logging.getLogger(__name__)

_PIECE = 2**23  # bytes asked for at a time
_SECONDS_BEFORE_RETRY = (0.5, 1, 2, 4, 8, 16)  # after so many failures without a byte between them it gives up
_PASSING_STATUS = {408, 425, 429}


@dataclass(frozen=True)
class Downloads:
    """The fetched files of a store."""

    store: Store = field(default_factory=default_store)

    def fetch(self, file: File, progress: Progress | None = None) -> File:
        """A local copy of a file, fetched unless it is there already.

        Args:
            file: from a source; one that lies on this machine is handed back as it is.
            progress: called as bytes arrive with (what is fetched, bytes so far, bytes of the whole).

        Raises:
            CheckpointError: the content is not what its digest says, or the disk is full.
            UnreachableError: the source stopped answering, and went on so after several attempts.
        """
        if file.path is not None:
            return file
        if found := self._known(file):
            return self._local(file, found)
        with clear_write_errors(self.store.root), self.store.locked("fetched", _key(file)):
            found = self._known(file) or self._download(file, progress)
        return self._local(file, found)

    def find(self, file: File) -> File:
        """The local copy of a file, if it was fetched before; else the file itself."""
        found = None if file.path is not None else self._known(file)
        return self._local(file, found) if found else file

    def remember(self, location: Location, files: dict[str, File]) -> None:
        """Record which local files a URI stood for, so that it can be opened offline."""
        record = {
            "uri": location.uri,
            "main": location.main,
            "about": dict(location.about),
            "files": {name: file.sha256 for name, file in files.items()},
        }
        self.store.write_record("locations", digest_of(location.uri), record)

    def recall(self, uri: str) -> Location | None:
        """What a URI stood for when it was last fetched, if all of it is still here."""
        record = self.store.record("locations", digest_of(uri))
        if record is None or not all(self.store.has(sha256) for sha256 in record["files"].values()):
            return None

        def find(name: str) -> File:
            if name not in record["files"]:
                raise CheckpointError(f"{uri}: the file {name!r} of it is not in the store.")
            path = self.store.blob(record["files"][name])
            return File(uri, lambda: path.open("rb"), path.stat().st_size, path, record["files"][name])

        return Location(uri, record["main"], find, list(record["files"]), record["about"])

    def _local(self, file: File, sha256: str) -> File:
        path = self.store.blob(sha256)
        return File(file.uri, lambda: path.open("rb"), path.stat().st_size, path, sha256, file.version)

    def _known(self, file: File) -> str | None:
        """The digest of the content, where it is in the store."""
        key = _key(file)
        if file.version and (found := self.store.find("fetched", key)):
            return found
        return file.sha256 if file.sha256 and self.store.has(file.sha256) else None

    def _download(self, file: File, progress: Progress | None) -> str:
        partial = self.store.root / "partial" / _key(file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        if not (file.version or file.sha256):
            partial.unlink(missing_ok=True)  # nothing tells whether what came before is of the same content
        with partial.open("a+b") as opened:
            out = _Partial(opened)
            self._check_room(file, out.length)
            self._receive(file, out, progress)
            opened.flush()
            os.fsync(opened.fileno())
        sha256 = out.digest.hexdigest()
        if file.sha256 and sha256 != file.sha256:
            partial.unlink()
            raise CheckpointError(
                f"{file.uri}: its content has the SHA-256 {sha256}, not {file.sha256}. "
                "It was changed or damaged on the way; "
                "fetch it again, and if that does not help ask its owner."
            )
        return self.store.take(partial, sha256, "fetched", _key(file), uri=file.uri, version=file.version)

    def _check_room(self, file: File, present: int) -> None:
        free = shutil.disk_usage(self.store.root).free
        needed = (file.size or 0) - present
        if needed > free:
            raise CheckpointError(
                f"{file.uri}: needs {needed:,} bytes, but the disk of the store {self.store.root} has {free:,} free. "
                "Make room, or set TSV_STORE to a folder on another disk."
            )

    def _receive(self, file: File, out: _Partial, progress: Progress | None) -> None:
        """Append the rest of a file to ``out``; where the connection breaks, go on from there."""
        failures = 0
        while True:
            before = out.length
            try:
                return self._receive_once(file, out, progress)
            except _Interrupted as interrupted:
                error = interrupted.error
            failures = 1 if out.length > before else failures + 1
            if failures > len(_SECONDS_BEFORE_RETRY) or not _may_pass(error):
                with clear_errors(file.uri):
                    raise error
            seconds = _SECONDS_BEFORE_RETRY[failures - 1]
            log.info("%s: %s at byte %d; again in %s s", file.uri, type(error).__name__, out.length, seconds)
            time.sleep(seconds)

    def _receive_once(self, file: File, out: _Partial, progress: Progress | None) -> None:
        size = file.size
        with _interruptible():
            source = file.open()
        with source:
            with _interruptible():
                try:
                    source.seek(out.length)
                except (ValueError, OSError):  # a server that cannot start in the middle
                    out.clear()
            while size is None or out.length < size:
                with _interruptible():
                    piece = source.read(_PIECE if size is None else min(_PIECE, size - out.length))
                    if not piece and size is not None:
                        raise ConnectionError(f"it ended after {out.length:,} of {size:,} bytes")
                if not piece:
                    return
                out.append(piece)
                if progress:
                    progress(file.uri, out.length, size or 0)


class _Partial:
    """A file that grows, and the digest of what it holds so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.length = 0
        file.seek(0)
        while piece := file.read(_PIECE):
            self._count(piece)

    def append(self, piece: bytes) -> None:
        self.file.write(piece)
        self._count(piece)

    def clear(self) -> None:
        self.file.truncate(0)
        self.digest, self.length = hashlib.sha256(), 0

    def _count(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.length += len(piece)


class _Interrupted(Exception):
    """What a source raised while it was read, told apart from what writing to the store raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each client library has an exception tree of its own
        raise _Interrupted(error) from error


def _may_pass(error: Exception) -> bool:
    """Whether trying again can help."""
    if isinstance(error, CheckpointError | FileNotFoundError | PermissionError):
        return isinstance(error, UnreachableError)
    status = status_of(error)
    return status is None or status >= 500 or status in _PASSING_STATUS


def _key(file: File) -> str:
    return digest_of(f"{file.uri}\0{file.version}\0{file.size}\0{file.sha256}")
