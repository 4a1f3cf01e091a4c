"""Changing an archive's file: a segment is added in place, and whatever interrupts that leaves a sound archive.

1. The segment is appended behind the last one, and behind it the journal, a copy of the new index.
2. The index is overwritten in place.
3. The journal is cut off.

Until step 2 the old index holds, and what lies beyond the end that it names is ignored. Should step 2 be cut short, the
checksum of the index tells, and the journal stands in for it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ..atomic import atomic_write, clear_write_errors
from ..errors import ArchiveError
from ..formats.archive import LENGTH, Index, Place, encode_index, encode_journal, read_index

Metadata = dict[str, Any]
Amend = Callable[[Metadata], Metadata]
"""From the metadata of an archive to that after a change; called when nobody else can change it any more."""

_PAGE = 4096


class Segment(Protocol):
    """What can be added: it knows its size and writes itself."""

    @property
    def nbytes(self) -> int: ...

    def write(self, file: IO[bytes]) -> None: ...


def room_for(metadata: Metadata, names: Collection[str]) -> int:
    """Bytes of room for an index: twice what these segments and this metadata take, in whole pages."""
    return _PAGE * -(-2 * len(encode_index(metadata, dict.fromkeys(names, 10**13))) // _PAGE)


class Writer:
    """An archive being written for the first time."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self._file = file
        self.index = Index({}, {}, room)
        file.write(bytes(room))

    def put(self, name: str, segment: Segment) -> None:
        """Add a segment behind the others."""
        segment.write(self._file)
        self.index = _extended(self.index, name, segment.nbytes, {})

    def finish(self, metadata: Metadata) -> None:
        """Write the index."""
        front = _front(Index(metadata, self.index.segments, self.index.room))
        if front is None:
            raise ArchiveError("the index of the archive has outgrown its room.")
        self._file.seek(0)
        self._file.write(front)


def append(path: Path, name: str, segment: Segment, amend: Amend) -> None:
    """Add a segment in place. The rest is written anew only where the room of the index is used up."""
    with opened_for_change(path) as (file, index):
        new = _extended(index, name, segment.nbytes, amend(index.metadata))
        front = _front(new)
        if front is None:
            _write_anew(path, file, index.segments, new.metadata, {name: segment})
            return
        _finish_interrupted(file, index)
        file.seek(index.end)
        segment.write(file)
        file.write(encode_journal(front))
        _flush(file)
        file.seek(0)
        file.write(front)
        _flush(file)
        file.truncate(new.end)
        _flush(file)


def remove(path: Path, name: str, amend: Amend) -> None:
    """Write the file anew without a segment."""
    with opened_for_change(path) as (file, index):
        kept = {other: place for other, place in index.segments.items() if other != name}
        _write_anew(path, file, kept, amend(index.metadata), {})


@contextmanager
def opened_for_change(path: Path) -> Iterator[tuple[IO[bytes], Index]]:
    """The file, which no other process changes meanwhile, and its index.

    Raises:
        ArchiveError: another process changes it, or the same file stands under other names too.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: no such file. Make one with 'tsv compress'.")
    with clear_write_errors(path), path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveError(f"{path}: another process is changing it. Try again when that is done.") from None
        names = os.fstat(file.fileno()).st_nlink
        if not names:
            raise ArchiveError(f"{path}: another process has just replaced it. Try again.")
        if names > 1:
            raise ArchiveError(
                f"{path}: the same file stands under other names too, such as in a cache, and would change there. "
                "Copy it, and change the copy."
            )
        yield file, read_index(file, str(path))


def copy_bytes(source: IO[bytes], target: IO[bytes], count: int) -> None:
    """Copy ``count`` bytes from where one file stands to where the other does."""
    while count:
        block = source.read(min(count, shutil.COPY_BUFSIZE))  # type: ignore[attr-defined]
        if not block:
            raise ArchiveError("a file ended while it was copied; it was cut meanwhile. Try again.")
        target.write(block)
        count -= len(block)


def _write_anew(
    path: Path, file: IO[bytes], kept: dict[str, Place], metadata: Metadata, further: dict[str, Segment]
) -> None:
    with atomic_write(path) as out:
        writer = Writer(out, room_for(metadata, [*kept, *further]))
        for name, place in kept.items():
            writer.put(name, _Copy(file, place))
        for name, segment in further.items():
            writer.put(name, segment)
        writer.finish(metadata)


@dataclass(frozen=True)
class _Copy:
    """A segment of another archive."""

    file: IO[bytes]
    place: Place

    @property
    def nbytes(self) -> int:
        return self.place.nbytes

    def write(self, file: IO[bytes]) -> None:
        self.file.seek(self.place.start)
        copy_bytes(self.file, file, self.place.nbytes)


def _finish_interrupted(file: IO[bytes], index: Index) -> None:
    """Put the index in its place and cut off what follows the last segment, if an addition was interrupted."""
    if file.seek(0, os.SEEK_END) == index.end:
        return
    file.seek(0)
    file.write(_front(index) or b"")
    _flush(file)  # before the journal goes, which may be all that told the index
    file.truncate(index.end)


def _extended(index: Index, name: str, nbytes: int, metadata: Metadata) -> Index:
    return Index(metadata, index.segments | {name: Place(index.end, nbytes)}, index.room)


def _front(index: Index) -> bytes | None:
    """The first bytes of the file, all that there is room for; None where that is too little."""
    text = encode_index(index.metadata, {name: place.nbytes for name, place in index.segments.items()})
    room = index.room - LENGTH.size
    return LENGTH.pack(room) + text.ljust(room) if len(text) <= room else None


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
