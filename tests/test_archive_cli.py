"""``tsv compress --budget``, ``tsv archive`` and ``tsv route`` as their user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import Tsv, by_path

from tsvlib.checkpoint import open_checkpoint
from tsvlib.suite import Suite


@pytest.fixture
def tsv(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tsv:
    monkeypatch.setenv("TSV_STORE", str(tmp_path / "store"))
    return Tsv(capsys, monkeypatch)


def test_the_life_of_an_archive(tsv: Tsv, suite: Suite, tmp_path: Path) -> None:
    file, base = tmp_path / "a.safetensors", suite.path(suite.base)
    status, out, _ = tsv("compress", *by_path(suite), "--budget", "30%", "--dtype", "int8", "--out", file, "--json")
    assert status == 0
    made = json.loads(out)
    assert made["bytes"] == file.stat().st_size <= 0.3 * made["dense_bytes"]
    assert tsv("verify", file)[0] == 0

    listed = json.loads(tsv("archive", "ls", file, "--json")[1])
    assert set(listed["tasks"]) == {"bright", "side", "stripe"}
    assert listed["bytes"] == file.stat().st_size
    parameters = json.loads(tsv("archive", "ls", file, "--task", "side", "--json")[1])["parameters"]
    assert sum(one["bytes"] for one in parameters.values()) < listed["tasks"]["side"]["bytes"]

    assert json.loads(tsv("archive", "remove", file, "side", "--json")[1])["tasks"] == ["bright", "stripe"]
    task = f"side={suite.checkpoints['side']}"
    assert tsv("archive", "add", file, "--base", base, "--task", task)[0] == 0
    status, out, _ = tsv("archive", "verify", file, "--base", base)
    assert status == 0
    assert "sound" in out
    assert tsv("verify", file)[0] == 0
    assert tsv("extract", file, "--task", "side", "--base", base, "--out", tmp_path / "side.safetensors")[0] == 0
    assert set(open_checkpoint(tmp_path / "side.safetensors")) == set(open_checkpoint(base))


@pytest.mark.parametrize(("words", "message"), [
    (("archive", "ls", "{missing}"), "error: {missing}: no such file. Make one with 'tsv compress'.\n"),
    (("archive", "remove", "{file}", "sied"), "error: {file}: no task 'sied'. Did you mean 'side'? There are: bright, "
     "side, stripe.\n"),
    (("archive", "ls", "{file}", "--task", "sied"), "error: {file}: no task 'sied'. Did you mean 'side'? There are: "
     "bright, side, stripe.\n"),
])  # fmt: skip
def test_mistakes(tsv: Tsv, suite: Suite, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    places = {"file": tmp_path / "a.safetensors", "missing": tmp_path / "missing.safetensors"}
    tsv("compress", *by_path(suite), "--out", places["file"])
    status, _, complaint = tsv(*(word.format(**places) for word in words))
    assert (status, complaint) == (2, message.format(**places))


def test_a_damaged_archive(tsv: Tsv, suite: Suite, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tsv("compress", *by_path(suite), "--out", file)
    content = bytearray(file.read_bytes())
    content[-300] ^= 16
    file.write_bytes(content)
    status, _, complaint = tsv("archive", "verify", file)
    assert status == 2
    assert "task 'stripe', parameter 'visual." in complaint


def test_routing(tsv: Tsv, suite_file: Path, tmp_path: Path) -> None:
    file, router = tmp_path / "a.safetensors", tmp_path / "router.safetensors"
    tsv("compress", "--suite", suite_file, "--out", file)
    words = ("route", file, "--suite", suite_file, "--json")
    status, out, _ = tsv(*words, "--save", router)
    assert status == 0
    found = json.loads(out)
    assert json.loads(tsv(*words, "--saved", router)[1]) == found
    assert set(found["end"]) == {"bright", "side", "stripe"}
