"""Archives: one file of named segments, to which a segment can be added in place (docs/archive.md).

To any safetensors library an archive is a safetensors file whose tensors are bytes: each is a segment, and a segment
is a safetensors file itself. The outer header, here called the index, has room to spare. While a segment is added, a
copy of the new index, the journal, stands at the end of the file, and replaces an index whose overwriting was cut
short. What lies beyond the end that the index names is what an interrupted addition left; it is ignored.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Protocol

from ..errors import ArchiveError, CheckpointError
from .contents import Contents, StoredTensor
from .safetensors import METADATA_KEY, read_safetensors

LAYOUT_VERSION = 2
BASE = "base"
TASK_PREFIX = "task/"
PADDING = "padding"
"""Of a segment, to a multiple of eight bytes, so that the values of the next one are aligned."""

LENGTH = struct.Struct("<Q")
_JOURNAL = struct.Struct("<Q32s8s")  # length of the copy, its SHA-256, and what marks it
_MARK = b"TSVINDEX"
_PREFIX = b'{"__metadata__":{"archive":"'
_LONGEST_INDEX = 100_000_000


class Seekable(Protocol):
    """What a segment can be read from: a file, or a memory map of one."""

    def seek(self, position: int, /) -> Any: ...

    def read(self, count: int, /) -> bytes: ...


@dataclass(frozen=True)
class Place:
    """Where in the file a segment lies."""

    start: int
    nbytes: int


@dataclass(frozen=True)
class Index:
    """What an archive holds."""

    metadata: dict[str, Any]
    segments: dict[str, Place]
    room: int
    """Bytes from the start of the file to the first segment."""

    @property
    def end(self) -> int:
        """Bytes of a file that holds no more than this."""
        return self.room + sum(place.nbytes for place in self.segments.values())

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, sorted."""
        return sorted(name.removeprefix(TASK_PREFIX) for name in self.segments if name.startswith(TASK_PREFIX))


def encode_index(metadata: Mapping[str, Any], sizes: Mapping[str, int]) -> bytes:
    """The index as JSON, without what pads it to its room.

    Args:
        metadata: JSON-serialisable.
        sizes: name -> bytes of each segment, in the order of the file.
    """
    text, start, table = json.dumps(metadata, sort_keys=True), 0, {}
    for name, size in sizes.items():
        table[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        start += size
    about = {"archive": str(LAYOUT_VERSION), "sha256": _checksum(text, table), METADATA_KEY: text}
    return json.dumps({"__metadata__": about} | table, separators=(",", ":")).encode()


def encode_journal(front: bytes) -> bytes:
    """A copy of the first bytes of the file, to be found from its end."""
    return front + _JOURNAL.pack(len(front), hashlib.sha256(front).digest(), _MARK)


def looks_like_archive(head: bytes) -> bool:
    """Whether the first bytes are those of an archive of any layout but the first."""
    return head[LENGTH.size :].startswith(_PREFIX)


def read_index(file: BinaryIO, source: str) -> Index:
    """Read what an archive holds.

    Raises:
        ArchiveError: it is no archive, of an unknown layout, damaged, or truncated.
    """
    # an index that is being overwritten at this moment is in the journal, or complete by the time of the second look
    index = _read_front(file, source) or _read_journal(file, source) or _read_front(file, source)
    if index is None:
        raise ArchiveError(f"{source}: is no TSV-C archive, or its index is damaged. Take another copy of the file.")
    size = file.seek(0, os.SEEK_END)
    if index.end > size:
        raise ArchiveError(
            f"{source}: is truncated: its index tells of {index.end:,} bytes, the file has {size:,}. Take another copy."
        )
    return index


def read_archive(file: BinaryIO, source: str) -> Contents:
    """Find the tensors of all tasks, named ``task/tensor``, as in a plain checkpoint."""
    index = read_index(file, source)
    tensors: dict[str, StoredTensor] = {}
    made: dict[str, dict[str, Any]] = {}
    for task in index.tasks:
        contents = read_task(file, index, task, source)
        tensors |= {f"{task}/{name}": stored for name, stored in contents.tensors.items()}
        made[task] = contents.metadata
    return Contents(tensors, described(index, made))


def read_task(file: Seekable, index: Index, task: str, source: str) -> Contents:
    """Find the tensors of one task, reading no values; positions are those in the whole file.

    Raises:
        ArchiveError: its header is damaged.
    """
    place, recorded = index.segments[TASK_PREFIX + task], index.metadata["tasks"][task]["header"]
    contents = read_segment(file, place, recorded, f"{source}: task {task!r}")
    return Contents({name: stored for name, stored in contents.tensors.items() if name != PADDING}, contents.metadata)


def read_segment(file: Seekable, place: Place, checksum: str, what: str) -> Contents:
    """Find the tensors of one segment, whose header must have this checksum."""
    file.seek(place.start)
    head = file.read(LENGTH.size)
    length = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else place.nbytes
    head += file.read(min(length, place.nbytes))
    if segment_checksum(head) != checksum:
        raise ArchiveError(f"{what}: its header is damaged. Take another copy of the file, or remove and add the task.")
    try:
        contents = read_safetensors(io.BytesIO(head), place.nbytes, what)
    except CheckpointError as error:
        raise ArchiveError(str(error)) from error
    shifted = {name: replace(stored, start=place.start + stored.start) for name, stored in contents.tensors.items()}
    return Contents(shifted, contents.metadata)


def segment_checksum(head: bytes) -> str:
    """Of a segment's header with its length, 16 hex digits."""
    return hashlib.sha256(head).hexdigest()[:16]


def described(index: Index, made: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What an archive says of itself: as in other artifacts, base, tasks and sources, and how each task was made."""
    base = index.metadata["base"]
    return {
        "kind": "archive",
        "layout": LAYOUT_VERSION,
        "method": "tsv-c",
        "base": {"digest": base["digest"]},
        "tasks": {task: index.metadata["tasks"][task]["digest"] for task in index.tasks},
        "sources": {"base": base["source"], "tasks": {task: about["source"] for task, about in made.items()}},
        "made": {task: {name: about[name] for name in _MADE if name in about} for task, about in made.items()},
    }


_MADE = ("parameters", "key_policy", "mode", "versions", "commit")


def _read_front(file: BinaryIO, source: str) -> Index | None:
    file.seek(0)
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size or (length := LENGTH.unpack(head)[0]) > _LONGEST_INDEX:
        return None
    return _decoded(file.read(length), source)


def _read_journal(file: BinaryIO, source: str) -> Index | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _JOURNAL.size))
    mark = file.read(_JOURNAL.size)
    if len(mark) < _JOURNAL.size:
        return None
    length, digest, name = _JOURNAL.unpack(mark)
    if name != _MARK or length > size:
        return None
    file.seek(size - _JOURNAL.size - length)
    front = file.read(length)
    return _decoded(front[LENGTH.size :], source) if hashlib.sha256(front).digest() == digest else None


def _decoded(text: bytes, source: str) -> Index | None:
    """The index, or None where it is damaged."""
    try:
        table = json.loads(text)
        about = table.pop("__metadata__", {})
        own = json.loads(about.get(METADATA_KEY, "{}"))
        layout = about.get("archive") or (own.get("layout") if own.get("kind") == "archive" else None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    if layout is None:
        raise ArchiveError(f"{source}: is no TSV-C archive. Make one with 'tsv compress'.")
    if str(layout) != str(LAYOUT_VERSION):
        remedy = "Make it again with 'tsv compress'" if str(layout) == "1" else "Upgrade tsvlib"
        raise ArchiveError(f"{source}: has layout {layout}; this version reads {LAYOUT_VERSION}. {remedy}.")
    if about.get("sha256") != _checksum(about.get(METADATA_KEY), table):
        return None
    room = LENGTH.size + len(text)
    return Index(own, dict(_places(table, room)), room)


def _places(table: Mapping[str, Any], start: int) -> Iterator[tuple[str, Place]]:
    for name, entry in table.items():
        yield name, Place(start, entry["shape"][0])
        start += entry["shape"][0]


def _checksum(metadata: Any, table: Mapping[str, Any]) -> str:
    return hashlib.sha256(f"{metadata}\n{json.dumps(table, sort_keys=True)}".encode()).hexdigest()
