"""Checkpoints: named tensors, read one at a time, each file identified by its content.

Reading never holds more than one tensor; writing streams tensors to a temporary file that is renamed when
whole, so that an interrupted write leaves nothing behind under the final name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError, MismatchError

METADATA_KEY = "tsv"  # one key only: safetensors writes several in random order
_DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPE_OF = {name: dtype for dtype, name in _DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Checkpoint(Mapping[str, Tensor]):
    """A read-only mapping from parameter name to tensor.

    ``checkpoint[name]`` reads that one tensor from disk each time; nothing is kept in memory.
    """

    def __init__(
        self,
        specs: dict[str, TensorSpec],
        read: Callable[[str], Tensor],
        metadata: dict[str, Any] | None = None,
        path: Path | None = None,
    ) -> None:
        self.specs = specs
        self.metadata = metadata or {}
        self.path = path
        self._read = read

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: dict[str, Any] | None = None) -> Checkpoint:
        """A checkpoint held in memory."""
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        return cls(specs, tensors.__getitem__, metadata)

    @property
    def source(self) -> str:
        """How messages name it."""
        return str(self.path) if self.path else "<in memory>"

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.specs:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, uncompressed."""
        return sum(spec.nbytes for spec in self.specs.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) over names, dtypes, shapes and values; independent of file order and metadata."""
        whole = hashlib.sha256()
        for name in sorted(self.specs):
            spec = self.specs[name]
            whole.update(f"{name}\0{_DTYPES.get(spec.dtype, spec.dtype)}\0{list(spec.shape)}\0".encode())
            whole.update(hashlib.sha256(tensor_bytes(self[name])).digest())
        return whole.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor in C order, as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def open_checkpoint(uri: str | Path) -> Checkpoint:
    """Open a checkpoint for reading.

    Args:
        uri: path of a safetensors file, plain or as ``file://``.

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """
    path = Path(str(uri).removeprefix("file://"))
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint. Check the path, or make it first ('dvc repro').")
    if path.is_dir():
        raise CheckpointError(f"{path}: is a directory; name the safetensors file inside it.")
    return _open_safetensors(path)


def _open_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            specs = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                view = file.get_slice(name)
                dtype = _DTYPE_OF.get(view.get_dtype())
                if dtype is None:
                    raise CheckpointError(f"{path}: key {name!r} has the unsupported dtype {view.get_dtype()}.")
                specs[name] = TensorSpec(tuple(view.get_shape()), dtype)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({size:,} bytes): {error}. It may be truncated; fetch it again."
        ) from error

    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return Checkpoint(specs, read, metadata, path)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only when the block ends without an error.

    Raises:
        CheckpointError: the disk is full or the folder not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(f"{path}: the disk is full; nothing was written. Free some space and retry.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR):
            raise CheckpointError(f"{path}: cannot be written: {error.strerror}. Choose another place.") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_checkpoint(
    path: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: dict[str, Any] | None = None,
) -> Checkpoint:
    """Write a safetensors file tensor by tensor, never holding more than one.

    Args:
        path: where the file appears once it is whole.
        specs: shape and dtype of every tensor, in any order.
        tensors: every (name, tensor) of ``specs``, in any order; cast to the dtype in ``specs``.
        metadata: JSON-serialisable; stored in the header under the single key ``tsv``.
    """
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))  # aligned, and always the same
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps(metadata, sort_keys=True)}} if metadata else {}
    start, offsets = 0, {}
    for name in order:
        end = start + specs[name].nbytes
        header[name] = {
            "dtype": _DTYPES[specs[name].dtype],
            "shape": list(specs[name].shape),
            "data_offsets": [start, end],
        }
        offsets[name], start = start, end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(head)) + head)
        data = file.tell()
        missing = set(order)
        for name, tensor in tensors:
            spec = specs[name]
            if tuple(tensor.shape) != spec.shape:
                raise MismatchError([f"{path}: key {name!r} has shape {tuple(tensor.shape)}, not {spec.shape}."])
            file.seek(data + offsets[name])
            file.write(tensor_bytes(tensor.to(spec.dtype)))
            missing.discard(name)
        if missing:
            raise MismatchError([f"{path}: key {name!r} was not given." for name in sorted(missing)])
    return open_checkpoint(path)


def check_same_structure(base: Checkpoint, tasks: Mapping[str, Checkpoint]) -> None:
    """Check that every fine-tuned checkpoint has the base's keys and shapes.

    Raises:
        MismatchError: naming every file and key that differs.
    """
    problems = []
    for task, checkpoint in tasks.items():
        where = f"{checkpoint.source} (task {task!r})"
        for name in sorted(base.specs.keys() - checkpoint.specs.keys()):
            problems.append(f"{where}: key {name!r} of the base {base.source} is missing.")
        for name in sorted(checkpoint.specs.keys() - base.specs.keys()):
            problems.append(f"{where}: key {name!r} is not in the base {base.source}.")
        for name in sorted(base.specs.keys() & checkpoint.specs.keys()):
            ours, theirs = base.specs[name].shape, checkpoint.specs[name].shape
            if ours != theirs:
                problems.append(f"{where}: key {name!r} has shape {theirs}, the base {base.source} has {ours}.")
    if problems:
        problems.append("Merge only fine-tunes of the same base architecture.")
        raise MismatchError(problems)
