"""The file of an archive: interrupted and concurrent changes, damage, and what each is told as."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import write
from hypothesis import given, settings
from hypothesis import strategies as st

from tsvlib.archive import Archive, add, compress, container, open_archive
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.errors import ArchiveError
from tsvlib.formats import read_contents
from tsvlib.formats.archive import read_index, read_task


class Models:
    """A base and three fine-tunes."""

    def __init__(self, folder: Path) -> None:
        random = torch.Generator().manual_seed(0)
        start = {"w": torch.randn(40, 24, generator=random), "b": torch.randn(24, generator=random)}
        self.base = write(folder / "base.safetensors", start)
        self.tasks: dict[str, Checkpoint] = {}
        for task in ("one", "three", "two"):
            tuned = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=random) for name, tensor in start.items()}
            self.tasks[task] = write(folder / f"{task}.safetensors", tuned)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def path(models: Models, tmp_path: Path) -> Path:
    compress(models.base, {name: models.tasks[name] for name in ("one", "two")}, out=tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def digests(archive: Archive, base: Checkpoint) -> dict[str, str]:
    return {task: archive.extract(task, base).digest for task in archive.tasks}


class Steps:
    """What the file was whenever an addition made sure that it is on the disk, the state before included."""

    def __init__(self, path: Path, models: Models) -> None:
        self.states = [path.read_bytes()]
        flush = container._flush

        def recorded(file) -> None:
            flush(file)
            self.states.append(path.read_bytes())

        container._flush = recorded
        try:
            add(path, models.base, {"three": models.tasks["three"]})
        finally:
            container._flush = flush

    def torn(self, step: int, share: float) -> bytes:
        """The file when only a part of a step's bytes had reached the disk."""
        old, new = self.states[step], self.states[step + 1]
        if len(new) < len(old):
            return new if share > 0.5 else old
        changed = [i for i in range(len(new)) if i >= len(old) or new[i] != old[i]]
        cut = changed[int(share * (len(changed) - 1))]
        return new[:cut] + old[cut:]


@pytest.fixture(scope="module")
def steps(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    path = tmp_path_factory.mktemp("steps") / "a.safetensors"
    compress(models.base, {name: models.tasks[name] for name in ("one", "two")}, out=path)
    return Steps(path, models)


@settings(max_examples=60, deadline=None)
@given(step=st.integers(0, 2), share=st.floats(0, 1))
def test_an_addition_interrupted_anywhere_leaves_a_sound_archive(
    models: Models, steps: Steps, tmp_path_factory: pytest.TempPathFactory, step: int, share: float
) -> None:
    assert len(steps.states) == 4
    path = tmp_path_factory.mktemp("torn") / "a.safetensors"
    path.write_bytes(steps.states[0])
    before = digests(Archive(path), models.base)
    path.write_bytes(steps.torn(step, share))
    found = open_archive(path)
    assert found.tasks in (["one", "two"], ["one", "three", "two"])
    assert before.items() <= digests(found, models.base).items()
    assert len(list(found.verify())) == 2 * len(found.tasks)
    assert set(open_checkpoint(path).metadata["tasks"]) == set(found.tasks)
    if "three" not in found.tasks:
        add(path, models.base, {"three": models.tasks["three"]})
        assert path.read_bytes() == steps.states[-1]


def test_a_second_addition_after_a_torn_one(models: Models, steps: Steps, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(steps.torn(1, 0.5))  # only the journal knows the index
    add(path, models.base, {"four": models.tasks["two"]})
    assert Archive(path).tasks == ["four", "one", "three", "two"]
    assert len(list(Archive(path).verify())) == 8


def test_a_full_disk_leaves_the_archive_as_it_was(models: Models, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source, target, count) -> None:
        target.write(b"half of it")
        raise OSError(28, "No space left on device")

    before = digests(Archive(path), models.base)
    monkeypatch.setattr("tsvlib.archive.segment.copy_bytes", full)
    with pytest.raises(Exception, match="the disk is full"):
        add(path, models.base, {"three": models.tasks["three"]})
    assert digests(Archive(path), models.base) == before


def test_more_tasks_than_the_index_has_room_for(models: Models, path: Path) -> None:
    room = Archive(path)._index.room
    for number in range(40):
        add(path, models.base, {f"another-task-{number:03}": models.tasks["three"]})
    archive = Archive(path)
    assert archive._index.room > room
    assert len(archive.tasks) == 42
    assert len(set(digests(archive, models.base).values())) == 3


def test_a_reader_is_not_disturbed_by_changes(models: Models, path: Path) -> None:
    reader, later = Archive(path), Archive(path)
    before = digests(reader, models.base)
    add(path, models.base, {"three": models.tasks["three"]})
    assert digests(reader, models.base) == before
    container.remove(path, "task/one", lambda metadata: metadata | {
        "tasks": {name: about for name, about in metadata["tasks"].items() if name != "one"}
    })  # fmt: skip
    assert digests(Archive(path), models.base).keys() == {"three", "two"}
    assert digests(reader, models.base) == digests(later, models.base) == before


def test_one_change_at_a_time(models: Models, path: Path) -> None:
    with container.opened_for_change(path), pytest.raises(ArchiveError) as caught:
        add(path, models.base, {"three": models.tasks["three"]})
    assert str(caught.value) == f"{path}: another process is changing it. Try again when that is done."


def test_a_file_that_a_cache_shares_is_not_changed(models: Models, path: Path) -> None:
    os.link(path, path.with_name("in-a-cache"))
    before = path.read_bytes()
    with pytest.raises(ArchiveError) as caught:
        add(path, models.base, {"three": models.tasks["three"]})
    assert str(caught.value) == (
        f"{path}: the same file stands under other names too, such as in a cache, and would change there. Copy it, and "
        "change the copy."
    )
    assert path.read_bytes() == before


def test_a_truncated_archive(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, size - 100)
    with pytest.raises(ArchiveError) as caught:
        open_archive(path)
    assert str(caught.value) == (
        f"{path}: is truncated: its index tells of {size:,} bytes, the file has {size - 100:,}. Take another copy."
    )
    os.truncate(path, 100)
    with pytest.raises(ArchiveError, match="is no TSV-C archive, or its index is damaged"):
        open_archive(path)


def flipped(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def place_of(path: Path, name: str) -> int:
    """The middle of a stored tensor."""
    with path.open("rb") as file:
        stored = read_contents(file, "").tensors[name]
    return stored.start + stored.spec.nbytes // 2


@pytest.mark.parametrize(("name", "key"), [
    ("two/w/U", "w"), ("two/w/Vh", "w"), ("two/packed", "b"), ("two/scales", "w"),
])  # fmt: skip
def test_a_flipped_bit_is_told_by_task_and_parameter(models: Models, path: Path, name: str, key: str) -> None:
    flipped(path, place_of(path, name))
    archive = open_archive(path)
    list(archive.extract("one", models.base).items())
    with pytest.raises(ArchiveError) as caught:
        archive.extract("two", models.base)[key]
    recorded = archive.task("two").entries[key].crc32
    assert str(caught.value).startswith(
        f"{path}: task 'two', parameter '{key}': its bytes are not those that were written (CRC-32 "
    )
    assert str(caught.value).endswith(
        f"not {recorded:08x}). Take another copy of the file, or remove and add the task."
    )
    with pytest.raises(ArchiveError, match=f"task 'two', parameter '{key}'"):
        list(archive.verify())


def test_a_flipped_bit_in_a_header_of_a_task(models: Models, path: Path) -> None:
    flipped(path, Archive(path)._index.segments["task/two"].start + 40)
    archive = open_archive(path)
    list(archive.extract("one", models.base).items())
    with pytest.raises(ArchiveError) as caught:
        archive.extract("two", models.base)
    assert str(caught.value) == (
        f"{path}: task 'two': its header is damaged. Take another copy of the file, or remove and add the task."
    )


def test_a_flipped_bit_in_the_table_of_the_base(models: Models, path: Path) -> None:
    flipped(path, Archive(path)._index.segments["base"].start + 40)
    with pytest.raises(ArchiveError, match="the table of the base: its header is damaged"):
        open_archive(path).extract("one", models.base)


@settings(max_examples=80, deadline=None)
@given(bit=st.integers(0, 8 * 3000))
def test_no_flipped_bit_goes_unnoticed(
    models: Models, steps: Steps, tmp_path_factory: pytest.TempPathFactory, bit: int
) -> None:
    path = tmp_path_factory.mktemp("bits") / "a.safetensors"
    content = bytearray(steps.states[0])
    path.write_bytes(content)
    unread = padding(path)
    room = 8 + struct.unpack("<Q", content[:8])[0]
    text = len(bytes(content[:room]).rstrip(b" "))
    used = [*range(8, text), *range(room, len(content))]  # spaces that pad the index mean nothing
    position = used[(bit // 8) * len(used) // 3001]
    content[position] ^= 1 << bit % 8
    path.write_bytes(content)

    def read_all() -> None:
        found = open_archive(path)
        list(found.verify())
        if found.tasks != ["one", "two"]:
            raise ArchiveError("a task has gone")
        digests(found, models.base)

    if position in unread:
        return
    with pytest.raises(ArchiveError):
        read_all()


def padding(path: Path) -> set[int]:
    """The few bytes that align the segments; nobody reads them."""
    with path.open("rb") as file:
        index = read_index(file, "")
        used = {
            task: max(one.start + one.spec.nbytes for one in read_task(file, index, task, "").tensors.values())
            for task in index.tasks
        }
    places = [(index.segments[f"task/{task}"], end) for task, end in used.items()]
    return {position for place, end in places for position in range(end, place.start + place.nbytes)}


def test_remaining_bytes_mean_nothing(models: Models, path: Path) -> None:
    before: Callable[[], dict[str, str]] = lambda: digests(open_archive(path), models.base)  # noqa: E731
    expected = before()
    with path.open("ab") as file:
        file.write(b"what an interrupted addition left")
    assert before() == expected
    copy = path.with_name("copy.safetensors")
    shutil.copy(path, copy)
    assert digests(open_archive(copy), models.base) == expected
