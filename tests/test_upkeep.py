"""Looking after the store: what is listed, what is removed, and what never is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_cache import Models, alter, blobs, cut, merged

from tsvlib.cache import Cache
from tsvlib.cli.cache import parse_size
from tsvlib.errors import SettingError
from tsvlib.merging import merge
from tsvlib.store import Store
from tsvlib.upkeep import kept, prune, verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


PYTHON = [sys.executable, "-c"]


@contextmanager
def another_process_using(store: Store, *sha256: str) -> Iterator[None]:
    """A process that uses some content, and lives on."""
    code = (
        "import sys, pathlib, tsvlib.store\n"
        "store = tsvlib.store.Store(pathlib.Path(sys.argv[1]))\n"
        "store.enter()\n"
        "assert all(store.has(one) for one in sys.argv[2:])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    running = subprocess.Popen(
        [*PYTHON, code, str(store.root), *sha256], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        running.kill()
        running.communicate()


def in_another_process(code: str, *arguments: str) -> str:
    done = subprocess.run([*PYTHON, code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def pruned(store: Store, max_bytes: int) -> dict[str, int]:
    """Prune in a process of its own, as the command does: this one uses the store itself."""
    code = (
        "import sys, json, pathlib, dataclasses, tsvlib.store, tsvlib.upkeep\n"
        "store = tsvlib.store.Store(pathlib.Path(sys.argv[1]))\n"
        "print(json.dumps(dataclasses.asdict(tsvlib.upkeep.prune(store, int(sys.argv[2])))))\n"
    )
    return json.loads(in_another_process(code, str(store.root), str(max_bytes)))


def left(store: Store) -> set[str]:
    return {blob.name for blob in blobs(store)}


@pytest.fixture
def aged(store: Store, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Three things in a store that no process uses: filled by a process that is gone."""
    code = (
        "import sys, os, time, json, pathlib, tsvlib.store\n"
        "store = tsvlib.store.Store(pathlib.Path(sys.argv[1]))\n"
        "made = {}\n"
        "for age, letter in enumerate('abc'):\n"
        "    made[letter] = store.add_bytes(letter.encode() * 100, 'made', letter)\n"
        "    used = time.time() - 1000 + 100 * age\n"
        "    os.utime(store.stamp(made[letter]), (used, used))\n"
        "print(json.dumps(made))\n"
    )
    return json.loads(in_another_process(code, str(store.root)))


def test_the_least_recently_used_goes_first(store: Store, aged: dict[str, str]) -> None:
    assert pruned(store, 250) == {
        "blobs": 1, "nbytes": 100, "left_blobs": 2, "left_nbytes": 200, "in_use_nbytes": 0,
    }  # fmt: skip
    assert left(store) == {aged["b"], aged["c"]}
    assert store.record("made", "a") is None
    assert not store.stamp(aged["a"]).exists()


def test_use_counts_not_age(store: Store, aged: dict[str, str]) -> None:
    in_another_process(
        "import sys, pathlib, tsvlib.store; tsvlib.store.Store(pathlib.Path(sys.argv[1])).has(sys.argv[2])",
        str(store.root), aged["a"],
    )  # fmt: skip
    pruned(store, 100)
    assert left(store) == {aged["a"]}


def test_what_fits_stays(store: Store, aged: dict[str, str]) -> None:
    assert pruned(store, 300)["blobs"] == 0
    assert left(store) == set(aged.values())


def test_what_a_running_process_uses_stays(store: Store, aged: dict[str, str]) -> None:
    with another_process_using(store, aged["a"]):
        found = pruned(store, 0)
        assert (found["blobs"], found["left_nbytes"], found["in_use_nbytes"]) == (2, 100, 100)
        assert left(store) == {aged["a"]}
    assert pruned(store, 0)["left_blobs"] == 0, "a process that was killed uses nothing"


def test_pruning_beside_a_merge_changes_nothing(models: Models, store: Store) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def prune_on_and_on() -> None:
        while not stop.is_set():
            try:
                prune(store, 0)
                for one in kept(store):  # and worse than pruning: whatever is not being written goes
                    store.blob(one.sha256).unlink(missing_ok=True)
            except BaseException as failure:
                failures.append(failure)
                return

    expected = merge(models.base(), models.tasks()).digest
    pruning = threading.Thread(target=prune_on_and_on)
    pruning.start()
    try:
        for alpha in (1.0, 1.0, 1.0):
            assert merge(models.base(), models.tasks(), cache=Cache(store), alpha=alpha).digest == expected
    finally:
        stop.set()
        pruning.join()
    assert not failures


def test_remains_of_killed_processes_are_removed(store: Store, aged: dict[str, str]) -> None:
    dead = subprocess.run([*PYTHON, "import os; print(os.getpid())"], capture_output=True, text=True).stdout.strip()
    (store.root / "scratch" / f"{dead}-xyz").mkdir(parents=True)
    (store.root / "scratch" / f"{dead}-1.json").write_text("{")
    (store.root / "scratch" / f"{os.getpid()}-2.json").write_text("{")
    store.blob(aged["a"]).unlink()
    pruned(store, 10**9)
    assert [file.name for file in (store.root / "scratch").iterdir()] == [f"{os.getpid()}-2.json"]
    assert store.record("made", "a") is None
    assert store.record("made", "b") is not None


@pytest.mark.parametrize("damage", [cut, alter])
def test_verify_finds_what_is_damaged(models: Models, store: Store, damage: object) -> None:
    merged(models, store)
    assert verify(store) == []
    used = {one.sha256: one.used for one in kept(store)}
    first = min(blobs(store))
    damage(first)  # type: ignore[operator]
    assert [one.sha256 for one in verify(store)] == [first.name]
    assert first not in blobs(store)
    assert {one.sha256: one.used for one in kept(store)} == {k: v for k, v in used.items() if k != first.name}, (
        "verifying is no use"
    )


def test_kinds_are_told(models: Models, store: Store) -> None:
    merged(models, store)
    kinds = [one.kinds for one in kept(store)]
    assert kinds.count(["factors"]) == 24
    assert kinds.count(["merged"]) == 3


@pytest.mark.parametrize(("text", "size"), [("1000", 1000), ("2GB", 2 * 10**9), ("1.5 mb", 1_500_000), ("0", 0)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "two", "5 apples", "1GB2"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_size(text)
    assert str(caught.value) == (f"--max-size {text!r}: write a number of bytes, or a number and KB, MB, GB or TB.")
