"""What a reader of any format hands back: where in the file each tensor lies. No values are read for it."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..tensors import TensorSpec


@dataclass(frozen=True)
class StoredTensor:
    """One tensor inside a file: its spec, its first byte, and its strides (elements; None where C-contiguous)."""

    spec: TensorSpec
    start: int
    stride: tuple[int, ...] | None = None

    @property
    def span(self) -> int:
        """Bytes from the first to the last element, both included."""
        if self.stride is None or not self.spec.nbytes:
            return self.spec.nbytes
        last = sum((length - 1) * step for length, step in zip(self.spec.shape, self.stride, strict=True))
        return (last + 1) * self.spec.dtype.itemsize


@dataclass(frozen=True)
class Contents:
    """The tensors of one file by name, and the file's own metadata.

    Args:
        nested: whether the tensors lay under a key such as ``state_dict`` of a training checkpoint.
    """

    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    nested: bool = False


def read_tensor(file: BinaryIO, stored: StoredTensor, source: str, name: str) -> Tensor:
    """Read one tensor, C-contiguous, from an open file; only its own bytes are read, and changing it leaves them alone.

    Raises:
        CheckpointError: the file ends before the tensor does.
    """
    spec = stored.spec
    if not stored.span:
        return torch.empty(spec.shape, dtype=spec.dtype)
    values = _map(file, stored) if stored.start % spec.dtype.itemsize == 0 else None
    if values is None:
        values = torch.frombuffer(_read(file, stored, source, name), dtype=torch.uint8)
    flat = values.view(spec.dtype)
    if stored.stride is None:
        return flat.reshape(spec.shape)
    return flat.as_strided(spec.shape, stored.stride).contiguous()


def _map(file: BinaryIO, stored: StoredTensor) -> Tensor | None:
    """The bytes of a tensor, mapped into memory, so that they take none of their own; None if that cannot be done."""
    try:
        descriptor = file.fileno()
    except OSError:  # it lies elsewhere
        return None
    if os.fstat(descriptor).st_size < stored.start + stored.span:  # touching what is mapped beyond the end is fatal
        return None
    before = stored.start % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(descriptor, before + stored.span, access=mmap.ACCESS_COPY, offset=stored.start - before)
    return torch.frombuffer(mapped, dtype=torch.uint8, offset=before)


def _read(file: BinaryIO, stored: StoredTensor, source: str, name: str) -> bytearray:
    buffer = bytearray(stored.span)
    file.seek(stored.start)
    view, filled = memoryview(buffer), 0
    while filled < len(buffer):
        count = file.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError(
                f"{source}: ends inside the values of key {name!r}; the file was cut or changed since it was opened. "
                "Fetch it again."
            )
        filled += count
    return buffer
