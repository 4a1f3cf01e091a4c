"""Readers of weights files. The format is told from the content, never from the name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import CheckpointError
from .archive import looks_like_archive, read_archive
from .contents import Contents, StoredTensor, read_tensor
from .index import INDEX_SUFFIX, ShardIndex, parse_index
from .safetensors import METADATA_KEY, looks_like_safetensors, read_safetensors
from .torch_legacy import looks_like_pickle, read_torch_legacy
from .torch_zip import looks_like_zip, read_torch_zip

__all__ = [
    "INDEX_SUFFIX", "METADATA_KEY", "READERS", "Contents", "Reader", "ShardIndex", "StoredTensor", "choose_weights",
    "parse_index", "read_contents", "read_tensor",
]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A format: how its first bytes look, and how its tensors are found."""

    name: str
    looks_right: Callable[[bytes], bool]
    read: Callable[[BinaryIO, int, str], Contents]


READERS = (
    Reader("archive", looks_like_archive, lambda file, size, source: read_archive(file, source)),
    Reader("safetensors", looks_like_safetensors, read_safetensors),  # first: its length may begin as a pickle does
    Reader("torch zip", looks_like_zip, read_torch_zip),
    Reader("torch legacy", looks_like_pickle, read_torch_legacy),
)

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_USUAL_NAMES = (
    "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip


def read_contents(file: BinaryIO, source: str) -> Contents:
    """Find the tensors in an open, seekable file, reading no values.

    Args:
        source: how messages name the file.

    Raises:
        CheckpointError: the file is no weights file, damaged, or unsafe.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(min(size, 512))
    for reader in READERS:
        if reader.looks_right(head):
            return reader.read(file, size, source)
    raise CheckpointError(f"{source}: {_what_it_is(head, size)}")


def _what_it_is(head: bytes, size: int) -> str:
    start = head.lstrip().lower()
    if not head:
        return "the file is empty. Fetch it again."
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights it stands for. Run 'git lfs pull' where it came from."
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not weights; perhaps a login or an error page. Check the address and your access to it."
    if b"ustar" in head[257:263]:
        return "a tar archive, not weights. Unpack it and name the weights file inside."
    if head.startswith(b"\x1f\x8b"):
        return "compressed with gzip. Unpack it and name the weights file inside."
    if len(head) < 9:
        return f"only {size} bytes long, so no weights file. It may be truncated; fetch it again."
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return f"a text file, not weights; it starts with {head[:40].decode()!r}. Check the path."
    return "neither safetensors nor a torch file, by its first bytes. Check the path, or export it as safetensors."


def choose_weights(names: list[str], source: str) -> str:
    """Which file of a folder holds the weights: an index before single files, safetensors before torch files.

    Args:
        names: the files of the folder.

    Raises:
        CheckpointError: there is none, or more than one could be meant.
    """
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    usual = [name for name in _USUAL_NAMES if name in names]
    weights = [name for name in names if name.endswith(_WEIGHT_SUFFIXES)]
    candidates = indexes or usual[:1] or weights
    candidates = [name for name in candidates if ".safetensors" in name] or candidates
    if not candidates:
        raise CheckpointError(
            f"{source}: holds no weights: no {', '.join(_WEIGHT_SUFFIXES)} or *{INDEX_SUFFIX} file. "
            "Name the weights file."
        )
    if len(candidates) > 1:
        raise CheckpointError(
            f"{source}: more than one weights file: {', '.join(sorted(candidates))}. Name the one you mean."
        )
    return candidates[0]
