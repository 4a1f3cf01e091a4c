"""The store of fetched files: each is kept once, under the SHA-256 of its content, for all suites.

::

    blobs/sha256/ab/abcd...     the files, read-only
    records/<key>.json          which content a URI stood for, when it was last asked
    partial/<key>               what has come so far of a file that is still being fetched
    locks/<key>.lock            held by whoever fetches it
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from .atomic import atomic_write, clear_write_errors
from .errors import CheckpointError, UnreachableError
from .progress import Progress
from .sources.failures import clear_errors, status_of
from .sources.location import File, Location

log = logging.getLogger(__name__)

_PIECE = 2**23  # bytes asked for at a time
_SECONDS_BEFORE_RETRY = (0.5, 1, 2, 4, 8, 16)  # after so many failures without a byte between them it gives up
_PASSING_STATUS = {408, 425, 429}


def default_store() -> Store:
    """The store at $TSV_STORE, or ``.tsv/store`` in the current folder."""
    return Store(Path(os.environ.get("TSV_STORE", ".tsv/store")))


@dataclass(frozen=True)
class Store:
    """A folder of fetched files that any number of processes may share."""

    root: Path

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
        with clear_write_errors(self.root), self._locked(_key(file)):
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
        _write_json(self._record(_digest(location.uri)), record)

    def recall(self, uri: str) -> Location | None:
        """What a URI stood for when it was last fetched, if all of it is still here."""
        record = _read_json(self._record(_digest(uri)))
        if record is None or not all(self._blob(sha256).exists() for sha256 in record["files"].values()):
            return None

        def find(name: str) -> File:
            if name not in record["files"]:
                raise CheckpointError(f"{uri}: the file {name!r} of it is not in the store.")
            path = self._blob(record["files"][name])
            return File(uri, lambda: path.open("rb"), path.stat().st_size, path, record["files"][name])

        return Location(uri, record["main"], find, list(record["files"]), record["about"])

    def _blob(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def _record(self, key: str) -> Path:
        return self.root / "records" / f"{key}.json"

    def _local(self, file: File, sha256: str) -> File:
        path = self._blob(sha256)
        return File(file.uri, lambda: path.open("rb"), path.stat().st_size, path, sha256, file.version)

    def _known(self, file: File) -> str | None:
        """The digest of the content, where it is in the store."""
        record = _read_json(self._record(_key(file))) if file.version else None
        sha256 = file.sha256 or (record or {}).get("sha256")
        return sha256 if sha256 and self._blob(sha256).exists() else None

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        path = self.root / "locks" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    def _download(self, file: File, progress: Progress | None) -> str:
        partial = self.root / "partial" / _key(file)
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
        blob = self._blob(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        partial.chmod(0o444)
        os.replace(partial, blob)
        if file.version:
            _write_json(self._record(_key(file)), {"uri": file.uri, "version": file.version, "sha256": sha256})
        return sha256

    def _check_room(self, file: File, present: int) -> None:
        free = shutil.disk_usage(self.root).free
        needed = (file.size or 0) - present
        if needed > free:
            raise CheckpointError(
                f"{file.uri}: needs {needed:,} bytes, but the disk of the store {self.root} has {free:,} free. Make "
                "room, or set TSV_STORE to a folder on another disk."
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
    return _digest(f"{file.uri}\0{file.version}\0{file.size}\0{file.sha256}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, sort_keys=True).encode())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
