"""Writing safetensors tensor by tensor, in any order: one file, or several with an index.

A file appears under its name once it is whole, an index once all of its shards are; so a merge that is killed at any
moment leaves no broken checkpoint, and the shards that it finished are taken over by the next attempt.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from .atomic import atomic_write
from .errors import CheckpointError, MismatchError
from .formats import INDEX_SUFFIX, METADATA_KEY, read_contents
from .tensors import DTYPE_NAMES, TensorSpec, tensor_bytes

SHARD_BYTES = 5 * 10**9
"""Bytes of a shard at most, where no layout is given; what Hugging Face libraries take."""

Specs = Mapping[str, TensorSpec]
Metadata = dict[str, Any]


def is_index(path: Path) -> bool:
    """Whether a path asks for shards: it ends in ``.index.json``."""
    return path.name.endswith(INDEX_SUFFIX)


def shard_layout(path: Path, specs: Specs, shard_bytes: int = SHARD_BYTES) -> dict[str, str]:
    """Name of each tensor -> name of its shard; in the order of ``specs``, each shard as full as it may be."""
    numbers, number, filled = {}, 1, 0
    for name, spec in specs.items():
        if filled and filled + spec.nbytes > shard_bytes:
            number, filled = number + 1, 0
        numbers[name], filled = number, filled + spec.nbytes
    stem = path.name.removesuffix(INDEX_SUFFIX).removesuffix(".safetensors")
    return {name: f"{stem}-{n:05}-of-{number:05}.safetensors" for name, n in numbers.items()}


def finished_tensors(path: Path, specs: Specs, metadata: Metadata | None, shards: Mapping[str, str]) -> set[str]:
    """Tensors that an earlier, interrupted attempt at the same file wrote already.

    A shard counts if it is whole, holds what is asked for, and its header says that it was made the same way.
    """
    finished: set[str] = set()
    made = json.loads(json.dumps(metadata or {}))
    for shard, names in _by_shard(shards).items():
        try:
            with (path.parent / shard).open("rb") as file:
                contents = read_contents(file, shard)
        except (OSError, CheckpointError):
            continue
        found = {name: stored.spec for name, stored in contents.tensors.items()}
        if found == {name: specs[name] for name in names} and contents.metadata == made:
            finished |= set(names)
    return finished


def write_file(path: Path, specs: Specs, tensors: Iterable[tuple[str, Tensor]], metadata: Metadata | None) -> None:
    """Write one safetensors file.

    Raises:
        CheckpointError: the disk is full or the folder not writable.
        MismatchError: a tensor has another shape than in ``specs``, or is not given.
    """
    with _File(path, specs, metadata) as file:
        for name, tensor in tensors:
            file.put(name, tensor)


def write_shards(
    path: Path,
    specs: Specs,
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Metadata | None,
    shards: Mapping[str, str],
) -> None:
    """Write shards beside ``path`` and the index to it; shards that are finished already are not expected again.

    Args:
        tensors: every (name, tensor) that :func:`finished_tensors` does not name, in any order.
        shards: name of each tensor -> name of its shard.

    Raises:
        CheckpointError: the disk is full or the folder not writable.
        MismatchError: a tensor has another shape than in ``specs``, or is not given.
    """
    finished = finished_tensors(path, specs, metadata, shards)
    with ExitStack() as stack:
        files: dict[str, _File] = {}
        for shard, names in _by_shard(shards).items():
            if not finished.issuperset(names):
                its_specs = {name: specs[name] for name in names}
                files[shard] = stack.enter_context(_File(path.parent / shard, its_specs, metadata))
        for name, tensor in tensors:
            files[shards[name]].put(name, tensor)
    total = sum(spec.nbytes for spec in specs.values())
    about = {"total_size": total} | ({METADATA_KEY: json.dumps(metadata, sort_keys=True)} if metadata else {})
    with atomic_write(path) as index:
        content = {"metadata": about, "weight_map": {name: shards[name] for name in sorted(specs)}}
        index.write(json.dumps(content, indent=2).encode())


class _File:
    """A safetensors file being written; it takes its name as soon as its last tensor has come."""

    def __init__(self, path: Path, specs: Specs, metadata: Metadata | None) -> None:
        self.path = path
        self.specs = specs
        self.missing = set(specs)
        self._head, self._starts = _layout(specs, metadata)

    def __enter__(self) -> _File:
        with ExitStack() as stack:  # unwinds, and so cleans up, if the header cannot be written
            self._file: IO[bytes] = stack.enter_context(atomic_write(self.path))
            self._file.write(self._head)
            self._stack = stack.pop_all()
        return self

    def put(self, name: str, tensor: Tensor) -> None:
        spec = self.specs[name]
        if tuple(tensor.shape) != spec.shape:
            raise MismatchError([f"{self.path}: key {name!r} has shape {tuple(tensor.shape)}, not {spec.shape}."])
        self._file.seek(self._starts[name])
        self._file.write(tensor_bytes(tensor.to(spec.dtype)))
        self.missing.discard(name)
        if not self.missing:
            self._stack.close()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None and self.missing:
            error = MismatchError([f"{self.path}: key {name!r} was not given." for name in sorted(self.missing)])
            self._stack.__exit__(MismatchError, error, None)
            raise error
        self._stack.__exit__(kind, error, trace)


def _layout(specs: Specs, metadata: Metadata | None) -> tuple[bytes, dict[str, int]]:
    """The length and header of a file, and the first byte of each tensor."""
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))  # aligned, and always the same
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps(metadata, sort_keys=True)}} if metadata else {}
    start, offsets = 0, {}
    for name in order:
        spec = specs[name]
        end = start + spec.dtype.itemsize * math.prod(spec.shape)
        header[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        offsets[name], start = start, end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head, {name: 8 + len(head) + offset for name, offset in offsets.items()}


def _by_shard(shards: Mapping[str, str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, shard in shards.items():
        names.setdefault(shard, []).append(name)
    return names
