"""What an archive knows of its base: name, shape, dtype and digest of each tensor, so that another one is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from torch import Tensor

from ..checkpoint import Checkpoint
from ..errors import ArchiveError
from ..formats import METADATA_KEY
from ..formats.archive import LENGTH, segment_checksum
from ..tensors import DTYPE_NAMES, DTYPE_OF_NAME, TensorSpec

_DIGITS = 16
_SMALL = 2**16  # tensors of so many bytes are compared at once, larger ones when they are first read


@dataclass(frozen=True)
class BaseTable:
    """The tensors of a base."""

    specs: dict[str, TensorSpec]
    digests: dict[str, str]
    """The first 16 hex digits of each tensor's SHA-256."""

    @classmethod
    def of(cls, base: Checkpoint) -> BaseTable:
        """Of a checkpoint, which is read once."""
        return cls(dict(base.specs), {name: base.tensor_digest(name)[:_DIGITS] for name in base.specs})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> BaseTable:
        """From the header of a segment."""
        found = metadata["tensors"]
        specs = {name: TensorSpec(tuple(shape), DTYPE_OF_NAME[dtype]) for name, (dtype, shape, _) in found.items()}
        return cls(specs, {name: digest for name, (_, _, digest) in found.items()})

    def segment(self) -> BaseSegment:
        """As a segment of an archive."""
        tensors = {
            name: [DTYPE_NAMES[spec.dtype], list(spec.shape), self.digests[name]] for name, spec in self.specs.items()
        }
        text = json.dumps({"__metadata__": {METADATA_KEY: json.dumps({"tensors": tensors}, separators=(",", ":"))}})
        head = text.encode()
        head += b" " * (-len(head) % 8)
        return BaseSegment(LENGTH.pack(len(head)) + head)


@dataclass(frozen=True)
class BaseSegment:
    """The table as bytes: the header of a safetensors file without tensors."""

    head: bytes

    @property
    def nbytes(self) -> int:
        return len(self.head)

    @property
    def checksum(self) -> str:
        return segment_checksum(self.head)

    def write(self, file: IO[bytes]) -> None:
        file.write(self.head)


class CheckedBase(Mapping[str, Tensor]):
    """A base, each tensor of which is compared with the table when it is first read.

    Structure and small tensors are compared at once: two different models hardly agree in those.

    Raises:
        ArchiveError: it is another base than the archive was made from, or was altered.
    """

    def __init__(self, base: Checkpoint, table: BaseTable, where: str) -> None:
        self.checkpoint = base
        self._table = table
        self._where = where
        self._sound: set[str] = set()
        if dict(base.specs) != table.specs:
            differing = sorted(name for name, _ in base.specs.items() ^ table.specs.items())
            raise self._refusal(f"differs in key {differing[0]!r} (shape, dtype or presence)")
        for name, spec in table.specs.items():
            if spec.nbytes <= _SMALL:
                self._check(name)

    def __getitem__(self, name: str) -> Tensor:
        self._check(name)
        return self.checkpoint[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.checkpoint)

    def __len__(self) -> int:
        return len(self.checkpoint)

    def _check(self, name: str) -> None:
        if name in self._sound:
            return
        if self.checkpoint.tensor_digest(name)[:_DIGITS] != self._table.digests[name]:
            raise self._refusal(f"differs in the values of key {name!r}")
        self._sound.add(name)

    def _refusal(self, how: str) -> ArchiveError:
        return ArchiveError(
            f"{self._where}: was made from another base than {self.checkpoint.source}, which {how}. Give the base that "
            "it was made from, unaltered."
        )
