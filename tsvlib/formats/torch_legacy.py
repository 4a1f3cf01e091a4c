"""What ``torch.save`` wrote before torch 1.6: five pickles one after the other, then the values of each storage."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

from ..errors import CheckpointError
from .contents import Contents
from .pickle_reader import read_pickle
from .torch_objects import Storage, find_contents, read_object

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of torch.serialization
_PROTOCOL_VERSION = 1001


def looks_like_pickle(head: bytes) -> bool:
    """Whether the first bytes are those of a pickle of protocol 2 to 5."""
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def read_torch_legacy(file: BinaryIO, size: int, source: str) -> Contents:
    """Find the tensors of a file in torch's old layout.

    Raises:
        CheckpointError: the file is damaged, was not written by ``torch.save``, or asks for code to be run.
    """
    file.seek(0)
    if _plain(file, source) != _MAGIC_NUMBER:
        raise CheckpointError(
            f"{source}: a pickle that torch.save did not write, so its tensors cannot be taken out safely. Save the "
            "model's state_dict() with torch.save, or as safetensors."
        )
    if (version := _plain(file, source)) != _PROTOCOL_VERSION:
        raise CheckpointError(f"{source}: torch file of the unknown version {version!r}. Save it again.")
    system = _plain(file, source)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{source}: its values are not in little-endian order. Save it on another machine.")
    root, storages = read_object(file, source)
    starts = _starts(file, storages, _plain(file, source), size, source)
    return find_contents(root, starts, source)


def _plain(file: BinaryIO, source: str) -> Any:
    """A pickle of plain values."""
    return read_pickle(file, source, lambda function, arguments: None, lambda identifier: None)


def _starts(file: BinaryIO, storages: dict[str, Storage], keys: Any, size: int, source: str) -> dict[str, int]:
    """The first byte of each storage: they follow in the order of ``keys``, each behind its length."""
    starts = {}
    position = file.tell()
    for key in keys if isinstance(keys, list) else ():
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise CheckpointError(
                f"{source}: lists values for the unknown tensor {key!r}. It is damaged; fetch it again."
            )
        file.seek(position)
        length = file.read(8)
        if len(length) < 8 or position + 8 + storage.nbytes > size:
            raise CheckpointError(
                f"{source}: not a whole torch file: it has {size:,} bytes, its tensors need at least "
                f"{position + 8 + storage.nbytes:,}. It may be truncated; fetch it again."
            )
        if struct.unpack("<q", length)[0] != storage.numel:
            raise CheckpointError(
                f"{source}: a tensor's length does not fit its values. It is damaged; fetch it again."
            )
        starts[key] = position + 8
        position += 8 + storage.nbytes
    return starts
