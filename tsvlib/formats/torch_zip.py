"""What ``torch.save`` writes since torch 1.6, and TorchScript archives: an uncompressed zip with ``data.pkl``."""

from __future__ import annotations

import struct
import zipfile
import zlib
from io import BytesIO
from typing import BinaryIO

from ..errors import CheckpointError
from .contents import Contents
from .pickle_reader import LONGEST_PICKLE
from .torch_objects import Storage, find_contents, read_object

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field


def looks_like_zip(head: bytes) -> bool:
    """Whether the first bytes are those of a zip archive."""
    return head.startswith(b"PK\x03\x04")


def read_torch_zip(file: BinaryIO, size: int, source: str) -> Contents:
    """Find the tensors of a zip that ``torch.save`` or ``torch.jit.save`` wrote, without importing or running its code.

    Raises:
        CheckpointError: the archive is damaged, was written by another program, or asks for code to be run.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            folder = _folder(archive, source)
            root, storages = read_object(BytesIO(_member(archive, f"{folder}data.pkl", source)), source)
            _check_byte_order(archive, folder, source)
            starts = _starts(file, archive, folder, storages, size, source)
    except (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError, EOFError, ValueError,
            OSError) as error:  # fmt: skip
        raise CheckpointError(
            f"{source}: not a whole torch zip archive ({size:,} bytes): {error}. It may be truncated; fetch it again."
        ) from error
    return find_contents(root, starts, source)


def _folder(archive: zipfile.ZipFile, source: str) -> str:
    """The folder inside the archive, named after the file that was first written."""
    names = [name for name in archive.namelist() if name.count("/") <= 1]
    folders = [name.removesuffix("data.pkl") for name in names if name.rpartition("/")[2] == "data.pkl"]
    if len(folders) != 1:
        raise CheckpointError(
            f"{source}: a zip archive without one data.pkl, so not written by torch.save. Unpack it and name the "
            "weights file inside."
        )
    return folders[0]


def _member(archive: zipfile.ZipFile, name: str, source: str) -> bytes:
    info = archive.getinfo(name)
    _check_stored(info, source)
    if info.file_size > LONGEST_PICKLE:
        raise CheckpointError(
            f"{source}: its {name} claims {info.file_size:,} bytes, over the limit {LONGEST_PICKLE:,}."
        )
    return archive.read(info)


def _check_stored(info: zipfile.ZipInfo, source: str) -> None:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise CheckpointError(
            f"{source}: {info.filename!r} in it is compressed, which torch.save never does. Unpack it and zip it with "
            "'zip -0', or save it again."
        )


def _check_byte_order(archive: zipfile.ZipFile, folder: str, source: str) -> None:
    name = f"{folder}byteorder"
    order = _member(archive, name, source) if name in archive.namelist() else b"little"
    if order != b"little":
        raise CheckpointError(
            f"{source}: its values are in the byte order {order!r}; only 'little' can be read. Save it on "
            "another machine."
        )


def _starts(
    file: BinaryIO, archive: zipfile.ZipFile, folder: str, storages: dict[str, Storage], size: int, source: str
) -> dict[str, int]:
    """The first byte of each storage that lies in the archive."""
    members = {info.filename: info for info in archive.infolist()}
    starts = {}
    for key, storage in storages.items():
        info = members.get(f"{folder}data/{key}") or members.get(f"{folder}tensors/{key}")
        if info is None:
            continue
        _check_stored(info, source)
        if info.file_size < storage.nbytes:
            raise CheckpointError(
                f"{source}: {info.filename!r} in it has {info.file_size:,} bytes, but {storage.nbytes:,} are needed. "
                "It is damaged; fetch it again."
            )
        file.seek(info.header_offset)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature != b"PK\x03\x04" or start + storage.nbytes > size:
            raise CheckpointError(
                f"{source}: {info.filename!r} in it lies outside the file. It is damaged; fetch it again."
            )
        starts[key] = start
    return starts
