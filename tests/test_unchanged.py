"""Digests of files that did not change are not taken again; of those that did, they are."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from conftest import write

from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.store import Store, file_digest
from tsvlib.unchanged import know_digests, known_file_digest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every file had been written long ago."""
    monkeypatch.setattr("tsvlib.unchanged._SECONDS_UNTIL_SETTLED", -1e6)


class Read:
    """Which tensors are read of a checkpoint."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.checkpoint = open_checkpoint(path)
        read = self.checkpoint._read
        monkeypatch.setattr(self.checkpoint, "_read", lambda name: (self.names.append(name), read(name))[1])


def test_an_unchanged_file_is_read_once(
    store: Store, tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    digest = write(path, {"a": torch.ones(3), "b": torch.zeros(2)}).digest
    for expected in (["a", "b"], []):
        read = Read(path, monkeypatch)
        know_digests(read.checkpoint, store)
        assert read.checkpoint.digest == digest
        assert sorted(read.names) == expected


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_changed_file_is_read_again(store: Store, tmp_path: Path, settled: None, keep_time: bool) -> None:
    path = tmp_path / "m.safetensors"
    write(path, {"a": torch.ones(3)})
    know_digests(open_checkpoint(path), store)
    known_file_digest(store, path)
    before = path.stat()
    time.sleep(0.01)
    with path.open("r+b") as file:  # in place, and of the same size
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = open_checkpoint(path)
    know_digests(again, store)
    assert again.digest == open_checkpoint(path).digest
    assert known_file_digest(store, path) == file_digest(path)


def test_a_file_that_changed_just_now_is_not_trusted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    write(path, {"a": torch.ones(3)})
    for _ in range(2):
        read = Read(path, monkeypatch)
        know_digests(read.checkpoint, store)
        assert read.names == ["a"]


def test_without_a_file_or_a_store(store: Store, tmp_path: Path) -> None:
    in_memory = Checkpoint.from_tensors({"a": torch.ones(3)})
    know_digests(in_memory, store)
    written = write(tmp_path / "m.safetensors", {"a": torch.ones(3)})
    know_digests(written, None)
    assert in_memory.digest == written.digest
    assert not store.root.exists()


def test_the_same_file_under_other_names(store: Store, tmp_path: Path, settled: None) -> None:
    opened = write(tmp_path / "m.safetensors", {"a": torch.ones(3), "b": torch.zeros(3)})
    know_digests(opened, store)
    renamed = Checkpoint({"b": opened.specs["a"]}, lambda name: opened["a"], path=opened.path)
    know_digests(renamed, store)
    assert renamed.tensor_digest("b") == opened.tensor_digest("a")
