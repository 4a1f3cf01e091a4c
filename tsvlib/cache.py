"""What was computed once is not computed again: tensors kept in the store, under a key of all that they depend on.

Results never depend on what the cache holds: a key names the content of the inputs, the code and the libraries, and
what is read back is what was written, every byte checked.
"""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import psutil
import safetensors.torch
from torch import Tensor

from .errors import CheckpointError, SettingError
from .formats import METADATA_KEY, read_contents, read_tensor
from .store import VARIABLE, Store, default_store

log = logging.getLogger(__name__)

CACHE_VARIABLE = "TSV_CACHE"
USE, REFRESH, OFF = "use", "refresh", "off"


_KINDS = {"merged": "merged matrices"}
"""Kind -> what people call it, where that is another word."""


class Entry(NamedTuple):
    """Tensors that belong together, and what there is to say of them (JSON-serialisable)."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


@dataclass
class Count:
    """How many results were found again, and how many made."""

    reused: int = 0
    computed: int = 0


@dataclass(frozen=True)
class Cache:
    """Computed tensors in a store, shared by any number of threads and processes.

    Args:
        store: where they are kept.
        since: entries of before this time (Unix) do not count; they are computed anew and replaced.
    """

    store: Store
    since: float = 0.0
    counts: dict[str, Count] = field(default_factory=dict, compare=False)
    """Kind -> what was found and made by way of this object."""
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def tensors(self, kind: str, key: str, compute: Callable[[], Entry]) -> Entry:
        """The entry of a key: read if it is there, else computed and kept; by one at a time of all who want it.

        A disk that is full stops no work: what cannot be kept is only handed back, with a warning.
        """
        if (found := self._read(kind, key)) is None:
            with self.store.locked(kind, key):
                if (found := self._read(kind, key)) is None:
                    made = compute()
                    self._write(kind, key, made)
                    self._count(kind, computed=1)
                    return made
        self._count(kind, reused=1)
        return found

    def find(self, kind: str, key: str) -> Entry | None:
        """The entry of a key if it is there."""
        if (found := self._read(kind, key)) is not None:
            self._count(kind, reused=1)
        return found

    def work(self) -> dict[str, dict[str, int]]:
        """Kind -> {reused, computed}; JSON-serialisable."""
        return {kind: asdict(count) for kind, count in sorted(self.counts.items())}

    def _count(self, kind: str, reused: int = 0, computed: int = 0) -> None:
        with self._lock:
            count = self.counts.setdefault(kind, Count())
            count.reused += reused
            count.computed += computed

    def _read(self, kind: str, key: str) -> Entry | None:
        record = self.store.record(kind, key)
        if record is None or self.store.record_file(kind, key).stat().st_mtime < self.since:
            return None
        content = self.store.read(str(record.get("sha256")))
        return None if content is None else _unpacked(content)

    def _write(self, kind: str, key: str, entry: Entry) -> None:
        try:
            self.store.add_bytes(_packed(entry), kind, key)
        except CheckpointError as error:
            log.warning("%s The work goes on without keeping this result.", error)


def describe_work(work: Mapping[str, Mapping[str, int]]) -> str:
    """How much was found again, as ``24 of 27 factors, 0 of 3 merged matrices``; empty for no work."""
    return ", ".join(
        f"{one['reused']} of {one['reused'] + one['computed']} {_KINDS.get(kind, kind)}"
        for kind, one in sorted(work.items())
    )


def default_cache(wanted: bool | None = None, recompute: bool = False) -> Cache | None:
    """The cache in the default store, or None for none.

    Args:
        wanted: use it or not; by default where $TSV_STORE is set or ``.tsv/store`` exists, unless $TSV_CACHE is off.
        recompute: compute anew what it holds, and keep that; also where $TSV_CACHE is refresh.

    Raises:
        SettingError: $TSV_CACHE is none of use, refresh and off.
    """
    setting = os.environ.get(CACHE_VARIABLE) or USE
    if setting not in (USE, REFRESH, OFF):
        raise SettingError(f"{CACHE_VARIABLE}={setting}: choose {USE}, {REFRESH} or {OFF}.")
    store = default_store()
    if wanted is None:
        wanted = setting != OFF and (recompute or VARIABLE in os.environ or store.root.is_dir())
    if not wanted:
        return None
    return Cache(store, psutil.Process().create_time() if recompute or setting == REFRESH else 0.0)


def _packed(entry: Entry) -> bytes:
    tensors = {name: tensor.contiguous() for name, tensor in entry.tensors.items()}
    return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(entry.about, sort_keys=True)})


def _unpacked(content: bytes) -> Entry:
    with io.BytesIO(content) as file:
        found = read_contents(file, "cache")
        tensors = {name: read_tensor(file, stored, "cache", name) for name, stored in found.tensors.items()}
    return Entry(tensors, found.metadata)
