"""One task of an archive: a safetensors file in the file, written entry by entry and read through a memory map.

Singular values and scales of all entries stand in one tensor ``scales``, parameters of few values in one tensor
``packed``; a larger entry ``e`` has tensors of its own, ``e/U`` and ``e/Vh`` or ``e/dense``.
"""

from __future__ import annotations

import json
import mmap
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import ArchiveError
from ..formats import METADATA_KEY, StoredTensor
from ..formats.archive import LENGTH, PADDING, segment_checksum
from ..tensors import DTYPE_NAMES, TensorSpec, tensor_bytes
from .coding import Coded, Coding
from .container import copy_bytes

SCALES, PACKED = "scales", "packed"


@dataclass(frozen=True)
class Entry:
    """Where one matrix, or one parameter that is no matrix, is found among the tensors of a task."""

    rank: int
    """Triplets; 0: stored densely."""
    scales: tuple[int, int]
    """First and one past the last among the scales."""
    packed: tuple[int, int] | None
    """The same among the packed values; None where it has tensors of its own."""
    truncation: float
    """Frobenius norm of what was left out."""
    quantisation: float
    """Bound on the norm of what storing the rest in few bits changes."""
    crc32: int
    """Of its scales and codes, in this order."""

    @property
    def error(self) -> float:
        """Bound on the Frobenius norm of the error."""
        return self.truncation + self.quantisation

    def tensors(self, key: str) -> tuple[str, ...]:
        """Names of its own tensors."""
        if self.packed:
            return ()
        return (f"{key}/U", f"{key}/Vh") if self.rank else (f"{key}/dense",)

    def as_json(self) -> list[float]:
        """As it stands in the header, where every byte counts."""
        return [
            self.rank, *self.scales, *(self.packed or (0, 0)), self.truncation, self.quantisation, self.crc32,
        ]  # fmt: skip

    @classmethod
    def from_json(cls, found: list[Any]) -> Entry:
        """The inverse."""
        rank, scales_from, scales_to, packed_from, packed_to, truncation, quantisation, crc32 = found
        packed = (packed_from, packed_to) if packed_to else None
        return cls(rank, (scales_from, scales_to), packed, truncation, quantisation, crc32)


class SegmentWriter:
    """Takes the entries of one task one by one; holds but the small ones, the others wait in a temporary file.

    Args:
        folder: of the temporary file, which has no name and vanishes with the process.
    """

    def __init__(self, coding: Coding, folder: Path) -> None:
        self.coding = coding
        self._entries: dict[str, Entry] = {}
        self._scales: list[Tensor] = []
        self._packed: list[Tensor] = []
        self._specs: dict[str, TensorSpec] = {}
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def put(self, key: str, coded: Coded) -> None:
        """Add an entry."""
        packed = None
        if coded.is_packed:
            packed = _next(self._packed, coded.codes[0].numel())
            self._packed.append(coded.codes[0].reshape(-1))
        crc = zlib.crc32(tensor_bytes(coded.scales))
        for part in coded.codes:
            crc = zlib.crc32(tensor_bytes(part), crc)
        scales = _next(self._scales, len(coded.scales))
        entry = Entry(coded.rank, scales, packed, coded.truncation, coded.quantisation, crc)
        self._scales.append(coded.scales)
        for name, part in zip(entry.tensors(key), coded.codes, strict=False):
            self._specs[name] = TensorSpec(tuple(part.shape), part.dtype)
            self._spool.write(tensor_bytes(part))
        self._entries[key] = entry

    def finish(self, metadata: dict[str, Any]) -> TaskSegment:
        """The whole segment, with what its header says of the task."""
        scales = torch.cat(self._scales) if self._scales else torch.empty(0)
        packed = torch.cat(self._packed) if self._packed else torch.empty(0, dtype=self.coding.small)
        head = encode_head(self._specs, len(scales), len(packed), self.coding, self._entries, metadata)
        return TaskSegment(head, (scales, packed), self._spool)


@dataclass(frozen=True)
class TaskSegment:
    """All bytes of one task."""

    head: bytes
    small: tuple[Tensor, ...]
    spool: IO[bytes]

    @property
    def checksum(self) -> str:
        return segment_checksum(self.head)

    @property
    def nbytes(self) -> int:
        unpadded = self._values
        return unpadded + -unpadded % 8

    @property
    def _values(self) -> int:
        small = sum(tensor.numel() * tensor.element_size() for tensor in self.small)
        return len(self.head) + small + self.spool.seek(0, 2)

    def write(self, file: IO[bytes]) -> None:
        file.write(self.head)
        for tensor in self.small:
            file.write(tensor_bytes(tensor))
        size = self.spool.seek(0, 2)
        self.spool.seek(0)
        copy_bytes(self.spool, file, size)
        file.write(bytes(self.nbytes - self._values))


def encode_head(
    specs: Mapping[str, TensorSpec],
    scales: int,
    packed: int,
    coding: Coding,
    entries: Mapping[str, Entry],
    metadata: dict[str, Any],
) -> bytes:
    """The header of a segment with its length: wide values first, so that all are aligned."""
    whole = {
        SCALES: TensorSpec((scales,), torch.float32),
        PACKED: TensorSpec((packed,), coding.small),
        **specs,
    }
    about = metadata | {"entries": {key: entry.as_json() for key, entry in entries.items()}}
    head: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps(about, sort_keys=True, separators=(",", ":"))}}
    start = 0
    for name, spec in whole.items():
        head[name] = _header_entry(spec, start)
        start += spec.nbytes
    if start % 8:
        head[PADDING] = _header_entry(TensorSpec((-start % 8,), torch.uint8), start)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return LENGTH.pack(len(text)) + text


def _header_entry(spec: TensorSpec, start: int) -> dict[str, Any]:
    offsets = [start, start + spec.nbytes]
    return {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}


def _next(held: list[Tensor], count: int) -> tuple[int, int]:
    start = sum(len(one) for one in held)
    return start, start + count


class TaskReader:
    """The entries of one task, mapped into memory; each is checked when it is first read.

    Args:
        mapped: the whole file.
        tensors: where in it the tensors of this task lie.
        metadata: of the segment.
        where: how messages name the archive.
    """

    def __init__(
        self, mapped: mmap.mmap, tensors: Mapping[str, StoredTensor], metadata: dict[str, Any], where: str, task: str
    ) -> None:
        self.metadata = metadata
        self.entries = {key: Entry.from_json(found) for key, found in metadata["entries"].items()}
        self._mapped = mapped
        self._tensors = tensors
        self._where = where
        self._task = task
        self._sound: set[str] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of values."""
        return sum(stored.spec.nbytes for stored in self._tensors.values())

    def entry_nbytes(self, key: str) -> int:
        """Bytes of the values of an entry."""
        entry = self.entries[key]
        scales = 4 * (entry.scales[1] - entry.scales[0])
        if entry.packed:
            return scales + (entry.packed[1] - entry.packed[0]) * self._tensors[PACKED].spec.dtype.itemsize
        return scales + sum(self._tensors[name].spec.nbytes for name in entry.tensors(key))

    def parts(self, key: str) -> tuple[Entry, tuple[Tensor, ...], Tensor]:
        """An entry, its codes and its scales; views of the file, not to be changed.

        Raises:
            ArchiveError: its bytes are not those that were written; names task and parameter.
        """
        entry = self.entries[key]
        scales = self._part(SCALES, entry.scales)
        codes: tuple[Tensor, ...] = ()
        if entry.packed:
            codes = (self._part(PACKED, entry.packed),)
        else:
            codes = tuple(self._part(name) for name in entry.tensors(key))
        if key not in self._sound:
            self._check(key, entry, codes, scales)
        return entry, codes, scales

    def _check(self, key: str, entry: Entry, codes: tuple[Tensor, ...], scales: Tensor) -> None:
        crc = 0
        for part in (scales, *codes):
            crc = zlib.crc32(tensor_bytes(part), crc)
        if crc != entry.crc32:
            raise ArchiveError(
                f"{self._where}: task {self._task!r}, parameter {key!r}: its bytes are not those that were written "
                f"(CRC-32 {crc:08x}, not {entry.crc32:08x}). Take another copy of the file, or remove and add the task."
            )
        self._sound.add(key)

    def _part(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        stored = self._tensors[name]
        shape, start = stored.spec.shape, stored.start
        if rows is not None:
            shape, start = (rows[1] - rows[0],), start + rows[0] * stored.spec.dtype.itemsize
        count = torch.Size(shape).numel()
        if not count:
            return torch.empty(shape, dtype=stored.spec.dtype)
        return torch.frombuffer(self._mapped, dtype=stored.spec.dtype, count=count, offset=start).reshape(shape)
