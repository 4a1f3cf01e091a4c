"""Files reached through fsspec: https, S3 and whatever else an installed fsspec package knows."""

from __future__ import annotations

import os
import re
from posixpath import basename, dirname
from typing import Any
from urllib.parse import urlsplit

import fsspec

from ..errors import CheckpointError
from ..formats import choose_weights
from .failures import check_online, clear_errors
from .location import File, Location

_BLOCK = 2**16  # bytes fetched ahead; a header is small, and a download asks for larger pieces anyway
_VERSION_FIELDS = (
    "ETag",
    "etag",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "created",
    "md5",
)
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})")


def locate_with_fsspec(uri: str) -> Location:
    """A file or folder on any file system that fsspec knows; ``#sha256=`` and 64 hex digits pin the content.

    Raises:
        CheckpointError: the scheme is unknown, its package is missing, or there is nothing there.
        UnreachableError: it does not answer, or this machine is offline.
    """
    address, _, fragment = uri.partition("#")
    sha256 = _pinned(uri, fragment)
    _check_protected(uri, sha256)
    check_online(uri)
    with clear_errors(uri):
        filesystem, path = _file_system(address, uri)
        info = filesystem.info(path)
        folder, name = dirname(path), basename(path)
        if info.get("type") == "directory":
            entries = filesystem.ls(path, detail=True)
            names = [basename(entry["name"]) for entry in entries if entry.get("type") == "file"]
            folder, name = path.rstrip("/"), choose_weights(names, uri)

    def find(wanted: str) -> File:
        shown = (
            address if address.endswith(wanted) else f"{address.rstrip('/').removesuffix(name).rstrip('/')}/{wanted}"
        )
        return remote_file(filesystem, f"{folder}/{wanted}", shown, sha256 if wanted == name else None)

    return Location(uri, name, find)


def remote_file(filesystem: Any, path: str, uri: str, sha256: str | None = None) -> File:
    """A file on an fsspec file system; ``uri`` is how messages and the store name it.

    Raises:
        CheckpointError: it is not there or may not be read.
        UnreachableError: the system does not answer.
    """
    with clear_errors(uri):
        info = filesystem.info(path)
    version = next((str(info[field]) for field in _VERSION_FIELDS if info.get(field)), "")
    return File(
        uri=uri,
        open=lambda: filesystem.open(path, "rb", block_size=_BLOCK, cache_type="readahead"),
        size=info.get("size"),
        sha256=sha256,
        version=version,
    )


def _pinned(uri: str, fragment: str) -> str | None:
    if not fragment:
        return None
    match = _SHA256.fullmatch(fragment.lower())
    if not match:
        raise CheckpointError(f"{uri}: '#{fragment}' is not understood; write #sha256= and 64 hexadecimal digits.")
    return match[1]


def _check_protected(uri: str, sha256: str | None) -> None:
    parts = urlsplit(uri)
    if parts.scheme == "http" and sha256 is None and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise CheckpointError(
            f"{uri}: plain http can be tampered with on the way. Use https, or add #sha256= and the digest of the file."
        )


def _file_system(address: str, uri: str) -> tuple[Any, str]:
    scheme = address.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(address, **_options(scheme))
    except ImportError as error:
        raise CheckpointError(f"{uri}: needs a package that is not installed: {error}.") from error
    except ValueError as error:
        raise CheckpointError(
            f"{uri}: no source is known for {scheme}://. Known are paths, https, hf, open-clip, the plug-ins' and what "
            "fsspec has a package for, such as s3."
        ) from error


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3" and (endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")):
        return {"endpoint_url": endpoint, "use_listings_cache": False}
    return {"use_listings_cache": False} if scheme in ("http", "https", "s3") else {}
