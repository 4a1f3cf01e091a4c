"""The store: files kept once, under the SHA-256 of their content, and records that say what stands for which content.

::

    blobs/sha256/ab/abcd...         the files, read-only: fetched, made, or tensors that were computed
    records/<kind>/ab/<key>.json    key -> SHA-256 of the content
    stamps/ab/abcd...               size and time of change of a blob when its content was last checked; touched at use
    locks/                          held by whoever makes the content of a key
    users/                          a file of each process that uses the store, locked since it began to
    scratch/, partial/              what is not whole yet

Any number of processes may share it. A blob is believed while its size and time of change are those of its stamp, else
its content is checked; one that is not what its name says is removed, with a warning, and so made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .atomic import clear_write_errors

log = logging.getLogger(__name__)

VARIABLE = "TSV_STORE"
_LOCK_DIGITS = 3  # of a key: 4096 locks a kind, so that the folder stays small


def default_store() -> Store:
    """The store at $TSV_STORE, or ``.tsv/store`` in the current folder."""
    return Store(Path(os.environ.get(VARIABLE, ".tsv/store")).absolute())


def digest_of(text: str) -> str:
    """SHA-256 of a text, as 64 hex digits: the key of what the text describes."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Store:
    """A folder of content-addressed files."""

    root: Path

    def blob(self, sha256: str) -> Path:
        """Where content of this digest stands, if it is here."""
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def find(self, kind: str, key: str) -> str | None:
        """Digest of the content that is recorded under a key, if it is here and what it should be."""
        sha256 = (self.record(kind, key) or {}).get("sha256")
        return sha256 if sha256 and self.has(sha256) else None

    def has(self, sha256: str) -> bool:
        """Whether content is here, whole and unchanged; marks it as used."""
        self.enter()
        blob, stamp = self.blob(sha256), self.stamp(sha256)
        try:
            state = _state(blob)
        except FileNotFoundError:
            return False
        with suppress(OSError, ValueError):
            if json.loads(stamp.read_text()) == state:
                os.utime(stamp)
                return True
        return self.check(sha256)

    def check(self, sha256: str) -> bool:
        """Read a blob and compare its content with its name; one that differs is removed, with a warning."""
        try:
            state = _state(self.blob(sha256))
            intact = file_digest(self.blob(sha256)) == sha256
        except FileNotFoundError:
            return False
        if intact:
            self._write_stamp(sha256, state)
        else:
            self.discard(sha256)
        return intact

    def discard(self, sha256: str) -> None:
        """Remove a blob that is not what its name says."""
        blob = self.blob(sha256)
        with self.locked("blobs", sha256), suppress(FileNotFoundError):
            if file_digest(blob) != sha256:  # nobody has mended it meanwhile
                log.warning("%s: truncated or altered; removed, and made anew when it is needed.", blob)
                blob.unlink()
                self.stamp(sha256).unlink(missing_ok=True)

    def read(self, sha256: str) -> bytes | None:
        """The content of a blob, every byte checked; None if it is not here or not what its name says."""
        self.enter()
        try:
            content = self.blob(sha256).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest() != sha256:
            self.discard(sha256)
            return None
        with suppress(FileNotFoundError):
            os.utime(self.stamp(sha256))
        return content

    def add(self, write: Callable[[Path], object], kind: str, key: str = "") -> str:
        """Keep what ``write`` writes to the path it is given, and record it under a key, by default its digest.

        Returns:
            The digest of the content.

        Raises:
            CheckpointError: the disk is full or the folder not writable.
        """
        scratch = self._folder("scratch")
        with tempfile.TemporaryDirectory(dir=scratch, prefix=f"{os.getpid()}-") as folder:
            written = Path(folder) / "file.safetensors"
            with clear_write_errors(self.root):
                write(written)
            sha256 = file_digest(written)
            return self.take(written, sha256, kind, key or sha256)

    def add_bytes(self, content: bytes, kind: str, key: str) -> str:
        """Keep these bytes, and record them under a key; they are not forced to the disk, as they are always checked.

        Raises:
            CheckpointError: the disk is full or the folder not writable.
        """
        scratch = self._folder("scratch") / f"{os.getpid()}-{threading.get_ident()}"
        with clear_write_errors(self.root):
            try:
                scratch.write_bytes(content)
                return self.take(scratch, hashlib.sha256(content).hexdigest(), kind, key)
            finally:
                scratch.unlink(missing_ok=True)

    def take(self, file: Path, sha256: str, kind: str, key: str, **about: Any) -> str:
        """Move a whole file of known digest into the store, and record it under a key; ``about`` goes to the record."""
        self.enter()
        with clear_write_errors(self.root), self.locked("blobs", sha256):  # not while it is being pruned
            blob = self.blob(sha256)
            blob.parent.mkdir(parents=True, exist_ok=True)
            file.chmod(0o444)  # hard links of it may stand elsewhere; nobody may write into them
            os.replace(file, blob)
            self._write_stamp(sha256, _state(blob))
            os.utime(self.stamp(sha256))
            self.write_record(kind, key, {"sha256": sha256, **about})
        return sha256

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """What was recorded under a key; None if nothing, or nothing readable."""
        try:
            found = json.loads(self.record_file(kind, key).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_record(self, kind: str, key: str, content: dict[str, Any]) -> None:
        """Record something under a key."""
        path = self.record_file(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._folder("scratch") / f"{os.getpid()}-{threading.get_ident()}.json"
        scratch.write_text(json.dumps(content, indent=2, sort_keys=True))
        os.replace(scratch, path)

    def record_file(self, kind: str, key: str) -> Path:
        """Where a record stands."""
        return self.root / "records" / kind / key[:2] / f"{key}.json"

    @contextmanager
    def locked(self, kind: str, key: str) -> Iterator[None]:
        """Alone among all threads and processes that want the same key; the kernel ends it if the holder dies."""
        with FileLock(self._folder("locks") / f"{kind}-{key[:_LOCK_DIGITS]}", thread_local=False):
            yield

    def enter(self) -> None:
        """Tell others that this process uses the store from now on; see :meth:`in_use_since`."""
        _enter(self.root, os.getpid())

    def in_use_since(self) -> float:
        """When the first of the processes that use the store now began to; infinity if there is none (Unix time)."""
        began = float("inf")
        for file in self._folder("users").iterdir():
            try:
                with FileLock(file, timeout=0):
                    file.unlink(missing_ok=True)  # its process is gone
            except Timeout:
                began = min(began, file.stat().st_mtime)
            except FileNotFoundError:
                pass
        return began

    def stamp(self, sha256: str) -> Path:
        """Where the stamp of a blob stands; its time of change is when the blob was last used."""
        return self.root / "stamps" / sha256[:2] / sha256

    def _write_stamp(self, sha256: str, state: list[int]) -> None:
        stamp = self.stamp(sha256)
        with suppress(OSError, ValueError):
            if json.loads(stamp.read_text()) == state:
                return  # its own time tells when the blob was used
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(json.dumps(state))

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        with clear_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder


def _state(blob: Path) -> list[int]:
    found = blob.stat()
    return [found.st_size, found.st_mtime_ns]


@cache
def _enter(root: Path, process: int) -> FileLock:
    """Held until the process ends, however it does."""
    folder = root / "users"
    with clear_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        mine = folder / f"{process}-{uuid.uuid4().hex}"  # processes of several machines may share the store
        lock = FileLock(mine, thread_local=False)
        lock.acquire()
    return lock
