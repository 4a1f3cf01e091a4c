"""The safetensors format, from its header alone, so that a range request of a remote file is enough to plan with.

The file is: 8 bytes little-endian length of the header, the header (JSON), the values of all tensors without gaps.
"""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

from ..errors import CheckpointError
from ..tensors import DTYPE_OF_NAME, TensorSpec
from .contents import Contents, StoredTensor

METADATA_KEY = "tsv"  # one key only: the safetensors library writes several in random order
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def looks_like_safetensors(head: bytes) -> bool:
    """Whether the first bytes can only be those of a safetensors file: a length and an opening brace."""
    return len(head) >= 9 and head[8:9] == b"{"


def read_safetensors(file: BinaryIO, size: int, source: str) -> Contents:
    """Find the tensors of a safetensors file of ``size`` bytes.

    Raises:
        CheckpointError: the file is truncated, or its header is wrong.
    """
    header, data_start = _read_header(file, size, source)
    metadata = _own_metadata(header.pop("__metadata__", {}), source)
    tensors = {name: _stored_tensor(name, entry, data_start, size, source) for name, entry in header.items()}
    _check_no_gap_or_overlap(tensors, data_start, size, source)
    return Contents(tensors, metadata)


def _read_header(file: BinaryIO, size: int, source: str) -> tuple[dict[str, Any], int]:
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST_HEADER:
        raise _wrong(source, f"its header claims to be {length:,} bytes long, over the limit of {_LONGEST_HEADER:,}")
    if 8 + length > size:
        raise _truncated(source, size, f"its header ends at byte {8 + length:,}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=lambda pairs: _without_duplicates(pairs, source))
    except (ValueError, RecursionError) as error:
        raise _wrong(source, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _wrong(source, f"its header is a JSON {type(header).__name__}, not an object")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _wrong(source, f"its header has the key {twice!r} twice")
    return keys


def _own_metadata(metadata: Any, source: str) -> dict[str, Any]:
    try:
        own = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise _wrong(source, f"its metadata key {METADATA_KEY!r} is not JSON") from error
    if not isinstance(own, dict):
        raise _wrong(source, f"its metadata key {METADATA_KEY!r} is not a JSON object")
    return own


def _stored_tensor(name: str, entry: Any, data_start: int, size: int, source: str) -> StoredTensor:
    try:
        dtype_name, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in [*shape, start, end])
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound or not isinstance(dtype_name, str):
        raise _wrong(source, f"key {name!r} has no proper 'dtype', 'shape' and 'data_offsets'")
    if dtype_name not in DTYPE_OF_NAME:
        raise CheckpointError(
            f"{source}: key {name!r} has the unsupported dtype {dtype_name}; convert it to one of "
            f"{', '.join(DTYPE_OF_NAME)}."
        )
    spec = TensorSpec(tuple(shape), DTYPE_OF_NAME[dtype_name])
    if end - start != spec.nbytes:
        raise _wrong(
            source, f"key {name!r} of shape {spec.shape} and dtype {dtype_name} needs {spec.nbytes:,} bytes, "
            f"but its offsets span {end - start:,}",
        )  # fmt: skip
    if data_start + end > size:
        raise _truncated(source, size, f"key {name!r} ends at byte {data_start + end:,}")
    return StoredTensor(spec, data_start + start)


def _check_no_gap_or_overlap(tensors: dict[str, StoredTensor], data_start: int, size: int, source: str) -> None:
    position = data_start
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].spec.nbytes)):
        if stored.start != position:
            kind = "shares bytes with another key" if stored.start < position else "follows a gap"
            raise _wrong(source, f"key {name!r} {kind} (starts at byte {stored.start:,}, expected {position:,})")
        position += stored.spec.nbytes
    if position != size:
        raise _wrong(source, f"{size - position:,} bytes follow the last tensor")


def _truncated(source: str, size: int, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{source}: not a whole safetensors file: {problem}, but the file has {size:,}. It may be truncated; fetch it "
        "again."
    )


def _wrong(source: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{source}: not a sound safetensors file: {problem}. Fetch it again, or export it anew.")
