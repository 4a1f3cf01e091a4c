"""Upkeep of the store: what is in it, what of it is damaged, and making it smaller."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import unchanged
from .processes import is_running
from .progress import Progress
from .store import Store

_SECONDS_TO_RESUME = 7 * 24 * 3600  # an interrupted download may be taken up again for a week


@dataclass(frozen=True)
class Kept:
    """One blob of the store."""

    sha256: str
    nbytes: int
    used: float
    """When it was last used (Unix time)."""
    records: tuple[Path, ...]
    """What stands for it; none after a process was killed between the two."""

    @property
    def kinds(self) -> list[str]:
        """What it is: fetched, made, factors, merged; ``nothing`` where no record says."""
        return sorted({record.parent.parent.name for record in self.records}) or ["nothing"]


@dataclass(frozen=True)
class Removed:
    """What a pruning removed, and what is left."""

    blobs: int
    nbytes: int
    left_blobs: int
    left_nbytes: int
    in_use_nbytes: int
    """Of what is left, what running processes have used since they began."""


def kept(store: Store) -> list[Kept]:
    """Everything in the store, the least recently used first."""
    records: dict[str, list[Path]] = {}
    for record in _files(store.root / "records"):
        for sha256 in _contents(record):
            records.setdefault(sha256, []).append(record)
    found = []
    for blob in _files(store.root / "blobs"):
        with suppress(FileNotFoundError):
            size, used = blob.stat().st_size, _used(store, blob.name)
            found.append(Kept(blob.name, size, used, tuple(records.get(blob.name, ()))))
    return sorted(found, key=lambda one: (one.used, one.sha256))


def prune(store: Store, max_bytes: int) -> Removed:
    """Remove the least recently used until the rest is no larger than ``max_bytes``.

    What a running process has used since it began stays, so that it is safe beside running merges. What killed
    processes left half-done, and records of what is gone, are removed too.
    """
    began = min(store.in_use_since(), time.time())
    _clear_remains(store, began)
    entries = kept(store)
    total, removed, freed = sum(one.nbytes for one in entries), 0, 0
    for one in entries:
        if total - freed > max_bytes and _remove(store, one, began):
            removed, freed = removed + 1, freed + one.nbytes
    _clear_records(store, began)
    left = kept(store)
    in_use = sum(one.nbytes for one in left if one.used >= began)
    return Removed(removed, freed, len(left), sum(one.nbytes for one in left), in_use)


def verify(store: Store, progress: Progress | None = None) -> list[Kept]:
    """Read everything; what is not what its name says is removed, so that it is made anew, and handed back here."""
    damaged, entries = [], kept(store)
    for done, one in enumerate(entries, start=1):
        if not store.check(one.sha256) and not store.blob(one.sha256).exists():
            damaged.append(one)
        if progress:
            progress(one.sha256[:12], done, len(entries))
    _clear_records(store, time.time())
    return damaged


def _remove(store: Store, one: Kept, began: float) -> bool:
    with store.locked("blobs", one.sha256):
        if _used(store, one.sha256) >= began:  # it was used meanwhile
            return False
        for record in one.records:
            record.unlink(missing_ok=True)
        store.blob(one.sha256).unlink(missing_ok=True)
        store.stamp(one.sha256).unlink(missing_ok=True)
    return True


def _used(store: Store, sha256: str) -> float:
    for file in (store.stamp(sha256), store.blob(sha256)):
        with suppress(FileNotFoundError):
            return file.stat().st_mtime
    return 0.0


def _clear_remains(store: Store, began: float) -> None:
    """What processes that are gone left of unfinished work."""
    for remains in (store.root / "scratch").glob("*"):
        process = remains.name.partition("-")[0]
        if process.isdecimal() and not is_running(int(process)):
            _delete(remains)
    for partial in (store.root / "partial").glob("*"):
        with suppress(FileNotFoundError):
            if partial.stat().st_mtime < began - _SECONDS_TO_RESUME:
                _delete(partial)


def _clear_records(store: Store, began: float) -> None:
    """Records of before ``began`` whose content is gone, and stamps of it."""
    for record in _files(store.root / "records"):
        with suppress(FileNotFoundError):
            if record.stat().st_mtime < began and _is_void(store, record):
                record.unlink()
    for stamp in _files(store.root / "stamps"):
        with suppress(FileNotFoundError):
            if stamp.stat().st_mtime < began and not store.blob(stamp.name).exists():
                stamp.unlink()


def _is_void(store: Store, record: Path) -> bool:
    """Whether a record stands for something that is gone or has changed, or cannot be read."""
    found = store.record(record.parent.parent.name, record.stem)
    if found is None:
        return True
    if record.parent.parent.name == unchanged.KIND:
        return unchanged.is_outdated(found)
    return not all(store.blob(one).exists() for one in _contents(record))


def _contents(record: Path) -> list[str]:
    """Digests of the content that a record stands for."""
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads(record.read_text())
        return [one for one in [found.get("sha256"), *found.get("files", {}).values()] if one]
    return []


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
