"""Checkpoints: named tensors, read one at a time, each file identified by its content.

Reading never holds more than one tensor; writing streams tensors to a temporary file that is renamed when
whole, so that an interrupted write leaves nothing behind under the final name.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from .atomic import atomic_write
from .downloads import Downloads
from .errors import CheckpointError, UnreachableError
from .formats import INDEX_SUFFIX, METADATA_KEY, StoredTensor, parse_index, read_contents, read_tensor
from .formats.wrapping import without_wrapping
from .progress import Progress
from .sources import File, Location, about_model, as_about, locate, scheme_of
from .tensors import DTYPE_NAMES, TensorSpec, tensor_bytes
from .writing import finished_tensors, is_index, shard_layout, write_file, write_shards

__all__ = [
    "METADATA_KEY", "Checkpoint", "TensorSpec", "atomic_write", "open_checkpoint", "open_location", "tensor_bytes",
    "unwritten", "write_checkpoint",
]  # fmt: skip


log = logging.getLogger(__name__)


class Checkpoint(Mapping[str, Tensor]):
    """A read-only mapping from parameter name to tensor.

    ``checkpoint[name]`` reads that one tensor from disk each time; nothing is kept in memory.

    Args:
        specs: shape and dtype of every tensor.
        read: reads one tensor by name.
        metadata: what the file says about itself.
        path: the file, or the index of its shards.
        source: how messages name it; the path by default.
        shards: name of each tensor -> name of the file it lies in, of a sharded checkpoint.
        about: what is known of the model beyond its weights, see :func:`tsvlib.sources.about_model`.
    """

    def __init__(
        self,
        specs: dict[str, TensorSpec],
        read: Callable[[str], Tensor],
        metadata: dict[str, Any] | None = None,
        path: Path | None = None,
        source: str | None = None,
        shards: Mapping[str, str] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.specs = specs
        self.metadata = metadata or {}
        self.path = path
        self.source = source or (str(path) if path else "<in memory>")
        self.shards = shards
        self.about = dict(about or {})
        self._read = read
        self._digests: dict[str, str] = {}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        metadata: dict[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """A checkpoint held in memory."""
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        return cls(specs, tensors.__getitem__, metadata, about=about)

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
            whole.update(f"{name}\0{DTYPE_NAMES.get(spec.dtype, spec.dtype)}\0{list(spec.shape)}\0".encode())
            whole.update(bytes.fromhex(self.tensor_digest(name)))
        return whole.hexdigest()

    def tensor_digest(self, name: str) -> str:
        """SHA-256 (64 hex digits) of one tensor's values, which are read for it once."""
        if name not in self._digests:
            self._digests[name] = hashlib.sha256(tensor_bytes(self[name])).hexdigest()
        return self._digests[name]

    def know(self, digests: Mapping[str, str]) -> None:
        """Take over digests of tensors that are known from elsewhere."""
        self._digests.update(digests)


def open_checkpoint(uri: str | Path, progress: Progress | None = None) -> Checkpoint:
    """Open a checkpoint for reading; one that lies elsewhere is fetched into the store first.

    Args:
        uri: a path or URI of a weights file, of a folder that holds one, or of an index of shards.
        progress: called with (what is fetched, bytes so far, bytes of the whole or 0 where unknown).

    Raises:
        CheckpointError: the file is missing, truncated, unsafe or no weights file; the message tells which.
        UnreachableError: it lies elsewhere, cannot be reached, and was not fetched before.
    """
    if scheme_of(uri) == "file":
        return open_location(locate(uri))
    downloads = Downloads()
    location, fetched = _find(str(uri), downloads), {}

    def fetch(name: str) -> File:
        fetched[name] = downloads.fetch(location.file(name), progress)
        return fetched[name]

    checkpoint = open_location(replace(location, file=fetch))
    downloads.remember(location, fetched)
    return checkpoint


def _find(uri: str, downloads: Downloads) -> Location:
    """Where a checkpoint lies; what it stood for when it was fetched, if that cannot change or be asked now."""
    recalled = downloads.recall(uri)
    if recalled and _PINNED.search(uri):
        return recalled
    try:
        return locate(uri)
    except UnreachableError as error:
        if recalled is None:
            raise
        log.warning("%s Taking what was fetched before.", error)
        return recalled


_PINNED = re.compile(r"#sha256=[0-9a-fA-F]{64}$|@[0-9a-f]{40}(/|$)")


def open_location(location: Location) -> Checkpoint:
    """Open what a source has found, where it lies: of a file elsewhere, only what is asked for is transferred.

    Raises:
        CheckpointError: as :func:`open_checkpoint`.
    """
    main = location.file(location.main)
    if location.main.endswith(INDEX_SUFFIX):
        opened = _open_shards(location, main)
    else:
        places, metadata = _open_file(main)
        opened = _checkpoint(places, metadata, main.path, location.uri)
    made_of = opened.metadata.get("model")  # of a file that tsvlib wrote
    opened.about = (as_about(made_of) if isinstance(made_of, dict) else {}) | about_model(location)
    return opened


_Places = dict[str, tuple[File, StoredTensor]]


def _open_file(file: File) -> tuple[_Places, dict[str, Any]]:
    with file.opened() as opened:
        contents = read_contents(opened, file.uri)
    names = without_wrapping(contents.tensors, contents.nested)
    return {names[name]: (file, stored) for name, stored in contents.tensors.items()}, contents.metadata


def _open_shards(location: Location, main: File) -> Checkpoint:
    with main.opened() as opened:
        index = parse_index(opened.read(), main.uri)
    places: _Places = {}
    for shard in index.shards:
        try:
            file = location.file(shard)
        except CheckpointError as error:
            raise CheckpointError(
                f"{main.uri}: names the shard {shard!r}, which cannot be had; all shards are needed. {error}"
            ) from error
        with file.opened() as opened:
            tensors = read_contents(opened, file.uri).tensors
        expected = {name for name, place in index.weight_map.items() if place == shard}
        if tensors.keys() != expected:
            differing = sorted(tensors.keys() ^ expected)
            place = "the index" if differing[0] in expected else "the shard"
            raise CheckpointError(
                f"{main.uri}: does not fit its shard {shard!r}: key {differing[0]!r} is only in {place} "
                f"({len(differing)} such keys). Fetch both again."
            )
        places |= {name: (file, stored) for name, stored in tensors.items()}
    return _checkpoint(places, index.metadata, main.path, location.uri, index.weight_map)


def _checkpoint(
    places: _Places, metadata: dict[str, Any], path: Path | None, source: str, shards: Mapping[str, str] | None = None
) -> Checkpoint:
    def read(name: str) -> Tensor:
        file, stored = places[name]
        with file.opened() as opened:
            return read_tensor(opened, stored, file.uri, name)

    specs = {name: stored.spec for name, (_, stored) in places.items()}
    return Checkpoint(specs, read, metadata, path, source, shards)


def write_checkpoint(
    path: Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: dict[str, Any] | None = None,
    like: Checkpoint | None = None,
) -> Checkpoint:
    """Write safetensors tensor by tensor, never holding more than one.

    Args:
        path: where the file appears once it is whole; with a name that ends in ``.index.json``, shards beside it.
        specs: shape and dtype of every tensor, in any order.
        tensors: every (name, tensor) of ``specs``, in any order; cast to the dtype in ``specs``. Of shards, those that
            :func:`unwritten` names are enough.
        metadata: JSON-serialisable; stored in the header under the single key ``tsv``.
        like: a checkpoint whose division into shards is taken over.
    """
    if is_index(path):
        write_shards(path, specs, tensors, metadata, _shards(path, specs, like))
    else:
        write_file(path, specs, tensors, metadata)
    return open_checkpoint(path)


def unwritten(
    path: Path | None, specs: Mapping[str, TensorSpec], metadata: dict[str, Any] | None, like: Checkpoint | None = None
) -> list[str]:
    """The tensors that an interrupted attempt at the same output left to be written; all, unless it is of shards."""
    finished: set[str] = set()
    if path is not None and is_index(path):
        finished = finished_tensors(path, specs, metadata, _shards(path, specs, like))
    return [name for name in specs if name not in finished]


def _shards(path: Path, specs: Mapping[str, TensorSpec], like: Checkpoint | None) -> dict[str, str]:
    if like is not None and like.shards and like.shards.keys() == specs.keys():
        stems = {shard: f"{shard.rpartition('.')[0]}.safetensors" for shard in set(like.shards.values())}
        return {name: stems[shard] for name, shard in like.shards.items()}
    return shard_layout(path, specs)
