"""Blobs and the cache key of tasks: what is found again, and what is made anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import flows  # noqa: F401 - sets Prefect's environment before prefect is imported
from tasks.blob import Blob, existing_file, new_file
from tasks.caching import _content
from tsvlib.errors import CheckpointError
from tsvlib.versions import source_digest


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSV_STORE", str(tmp_path / "store"))


def hello(path: Path) -> None:
    path.write_text("hello")


def test_equal_content_is_one_file() -> None:
    assert new_file(hello) == new_file(hello)
    assert new_file(hello).digest == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        new_file(fails)
    assert not [file for name in ("blobs", "records", "scratch") for file in (tmp_path / "store" / name).rglob("*")]


@pytest.mark.parametrize("content", ["hell", "jello"])
def test_a_record_of_a_missing_or_altered_file_does_not_validate(content: str) -> None:
    blob = new_file(hello)
    record = blob.model_dump_json()
    assert Blob.model_validate_json(record) == blob
    blob.path.chmod(0o644)
    blob.path.write_text(content)
    with pytest.raises(ValidationError, match="missing, altered, or not 5 bytes"):
        Blob.model_validate_json(record)
    blob.path.unlink(missing_ok=True)
    with pytest.raises(ValidationError, match="missing, altered, or not 5 bytes"):
        Blob.model_validate_json(record)


def test_a_link_replaces_what_was_there_and_shares_the_bytes(tmp_path: Path) -> None:
    blob, name = new_file(hello), tmp_path / "models" / "m.safetensors"
    name.parent.mkdir()
    name.write_text("older")
    blob.link(name)
    assert name.read_text() == "hello"
    assert os.stat(name).st_ino == os.stat(blob.path).st_ino


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: no such file"):
        existing_file(tmp_path / "gone.safetensors")


def test_the_key_sees_content_not_place(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    hello(here)
    hello(there)
    assert _content([existing_file(here)]) == _content([existing_file(there)])
    there.write_text("other")
    assert _content([existing_file(here)]) != _content([existing_file(there)])
    with pytest.raises(TypeError, match="a cached task cannot take a Tensor"):
        _content(torch.zeros(1))


def test_the_key_sees_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper_of_test.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = source_digest(("helper_of_test",))
    source_digest.cache_clear()
    (tmp_path / "helper_of_test.py").write_text("x = 2")
    assert source_digest(("helper_of_test",)) != before
