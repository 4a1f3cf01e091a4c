"""Readers of labelled images: the same images as a folder, parquet files and tar shards are the same data set."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import to_tensor

from tsvlib.data import DataDescription, data_kinds, open_data
from tsvlib.data.parquet import ParquetRecords
from tsvlib.errors import DataError
from tsvlib.images import LabelledImages, class_names, load_images

CLASSES = ["black_cat", "white dog"]


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (shade, shade // 2, 7)).save(buffer, "PNG")
    return buffer.getvalue()


EXAMPLES = {
    "train": [(picture(10 * i), i % 2) for i in range(20)],
    "test": [(picture(10 * i + 5), i % 2) for i in range(9)],
}


def as_folder(root: Path) -> Path:
    for split, examples in EXAMPLES.items():
        for number, (image, label) in enumerate(examples):
            file = root / split / CLASSES[label] / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
    return root


def as_parquet(root: Path, column: str = "image", names: bool = True) -> Path:
    """As ``Dataset.push_to_hub`` writes it."""
    root.mkdir(parents=True, exist_ok=True)
    features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    note = {b"huggingface": json.dumps({"info": {"features": features}})} if names else None
    for split, examples in EXAMPLES.items():
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = pa.array([{"bytes": image, "path": None} for image, _ in examples], kind)
        table = pa.table({column: images, "label": [label for _, label in examples]}).replace_schema_metadata(note)
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet", row_group_size=4)
    return root


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def as_webdataset(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split, examples in EXAMPLES.items():
        for half in (0, 1):
            with tarfile.open(root / f"{split}-{half:04}.tar", "w") as shard:
                for number, (image, label) in list(enumerate(examples))[half::2]:
                    add(shard, f"s{number:04}.png", image)
                    add(shard, f"s{number:04}.cls", str(label).encode())
    (root / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    return root


LAYOUTS = {"folder": as_folder, "parquet": as_parquet, "webdataset": as_webdataset}


def content(images: LabelledImages) -> set[tuple[bytes, int]]:
    return set(zip(images.encoded(), images.labels.tolist(), strict=True))


def test_there_is_a_reader_for_every_kind() -> None:
    assert data_kinds() == ["folder", "hub", "parquet", "webdataset"]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_gives_the_same_images(tmp_path: Path, kind: str) -> None:
    folder = LAYOUTS[kind](tmp_path / "data")
    assert content(load_images(folder, "test")) == set(EXAMPLES["test"])
    train, validation = load_images(folder, "train"), load_images(folder, "validation")
    assert (len(train), len(validation)) == (18, 2)
    assert content(train) | content(validation) == set(EXAMPLES["train"])
    assert class_names(folder) == ["black cat", "white dog"]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_records_cross_into_worker_processes(tmp_path: Path, kind: str) -> None:
    images = load_images(LAYOUTS[kind](tmp_path / "data"), "test")
    assert list(pickle.loads(pickle.dumps(images)).encoded([3, 0])) == list(images.encoded([3, 0]))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_images_have_names(tmp_path: Path, kind: str) -> None:
    images = load_images(LAYOUTS[kind](tmp_path / "data"), "test")
    expected = {
        "folder": "test/black_cat/04.png",
        "parquet": "test-00000-of-00001.parquet, row 2",
        "webdataset": "test-0000.tar, s0004.png",
    }
    assert images.name(2) == expected[kind]


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 19), min_size=1, max_size=30))
def test_any_rows_in_any_order(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-rows"
    if not folder.exists():
        as_parquet(folder)
    records = open_data(folder).records("train")
    assert list(records.encoded(rows)) == [EXAMPLES["train"][row][0] for row in rows]


def test_memory_is_bounded_by_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_parquet(tmp_path)
    monkeypatch.setattr("tsvlib.data.parquet.CACHE_BYTES", 1)
    records = open_data(tmp_path).records("train")
    assert isinstance(records, ParquetRecords)
    assert len(list(records.encoded(range(20)))) == 20
    assert len(records._kept) == 1  # of five row groups


def test_own_names_of_splits(tmp_path: Path) -> None:
    as_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / "seen")
    (tmp_path / "test").rename(tmp_path / "unseen")
    data = DataDescription(location=str(tmp_path), splits={"train": "seen", "test": "unseen"})
    assert content(load_images(data, "test")) == set(EXAMPLES["test"])
    with pytest.raises(DataError, match="holds no images that are understood"):
        load_images(tmp_path, "test")


def test_a_split_can_be_left_out(tmp_path: Path) -> None:
    as_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / "val")
    assert len(load_images(tmp_path, "validation")) == 9
    data = DataDescription(location=str(tmp_path), splits={"validation": None, "test": "val"})
    assert len(load_images(data, "validation")) == 2
    assert len(load_images(data, "test")) == 9


def test_a_suite_renames_classes(tmp_path: Path) -> None:
    as_folder(tmp_path)
    classes = {"white dog": "a hound", "black_cat": "a cat"}
    assert class_names(tmp_path, classes) == ["a hound", "a cat"]
    renamed, plain = load_images(tmp_path, "test", classes), load_images(tmp_path, "test")
    assert renamed.labels.tolist() == (1 - plain.labels).tolist()


def test_numbers_are_renamed_too(tmp_path: Path) -> None:
    as_parquet(tmp_path, names=False)
    images = load_images(tmp_path, "test", {"1": "one", "0": "zero"})
    assert images.labels.tolist() == [1 - label for _, label in EXAMPLES["test"]]


def test_labels_may_be_words(tmp_path: Path) -> None:
    rows = {"img": [picture(1), picture(2)], "category": ["white dog", "black cat"]}
    pq.write_table(pa.table(rows), tmp_path / "test.parquet")
    assert load_images(tmp_path, "test", ["black cat", "white dog"]).labels.tolist() == [1, 0]


def test_labels_may_be_truth_values(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [picture(1), picture(2)], "label": [True, False]}), tmp_path / "test.parquet")
    assert load_images(tmp_path, "test", ["no", "yes"]).labels.tolist() == [1, 0]


REFUSALS = {
    "order": (
        {"classes": ["white dog", "black cat"]},
        "the suite lists the classes in another order than the data: label 0 is 'black cat' there, 'white dog' in the "
        "suite. Put them in the data's order.",
    ),
    "number": ({"classes": ["cat", "dog", "cow"]}, "the suite lists 3 classes, the data has 2."),
    "twice": ({"classes": ["cat", "cat"]}, "the class 'cat' is named twice; give each class a name of its own."),
    "unknown": (
        {"classes": {"black_cat": "a cat"}},
        "label 1 has no class (4 of 9 images have such labels). There are 1 classes: correct the labels, or 'classes' "
        "of the suite.",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_class_names_that_do_not_fit(tmp_path: Path, case: str) -> None:
    as_parquet(tmp_path)
    given, message = REFUSALS[case]
    with pytest.raises(DataError) as caught:
        load_images(tmp_path, "test", given["classes"])
    assert str(caught.value) == f"{tmp_path}: {message}"


def test_no_class_names_at_all(tmp_path: Path) -> None:
    as_parquet(tmp_path, names=False)
    with pytest.raises(DataError, match=r"carries no class names\. List them under 'classes' of the suite's task, or"):
        load_images(tmp_path, "test")


def test_empty_classes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    as_folder(tmp_path)
    (tmp_path / "train" / "grey cow").mkdir()
    assert class_names(tmp_path) == ["black cat", "grey cow", "white dog"]
    assert load_images(tmp_path, "test").labels.max() == 2
    assert "no image of 1 of 3 classes: grey cow." in caplog.text


def test_wrong_sizes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DataDescription(location=str(as_folder(tmp_path)), sizes={"test": 1880})
    assert load_images(data, "test").expected == 1880
    assert "has 9 images, the suite expects 1880." in caplog.text


def test_missing_labels_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [picture(1), picture(2)], "label": [1, None]}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="1 rows of the column 'label' have no label; remove these rows"):
        load_images(tmp_path, "test", ["a", "b"])


def test_unknown_columns_are_told(tmp_path: Path) -> None:
    as_parquet(tmp_path, column="photo")
    with pytest.raises(DataError, match=r"no column 'image'\. Write which of photo, label it is as 'image' of the"):
        load_images(tmp_path, "test")
    assert len(load_images(DataDescription(location=str(tmp_path), image="photo"), "test")) == 9


def test_unknown_kinds_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"kind 'parket' is unknown\. Did you mean 'parquet'"):
        open_data(DataDescription(location=str(tmp_path), kind="parket"))
    with pytest.raises(DataError, match="no such folder"):
        open_data(tmp_path / "nothing")


def test_examples_without_a_label_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "test.tar", "w") as shard:
        add(shard, "0001.jpg", picture(1))
    with pytest.raises(DataError, match=r"example '0001' has no label, only jpg\. Write its extension as 'label'"):
        load_images(tmp_path, "test", ["a"])


def test_torn_shards_are_told(tmp_path: Path) -> None:
    shard = as_webdataset(tmp_path) / "test-0000.tar"
    shard.write_bytes(b"not a tar file" + shard.read_bytes()[:700])
    with pytest.raises(DataError, match="cannot be read as a tar file without compression"):
        load_images(tmp_path, "test")


def test_decoded_pixels_are_those_written(tmp_path: Path) -> None:
    images = load_images(as_webdataset(tmp_path), "test")
    batch = images.read(torch.tensor([1]), to_tensor)
    number = 2  # the second of the even ones, which the first shard holds
    expected = np.asarray(Image.open(io.BytesIO(EXAMPLES["test"][number][0]))) / 255
    assert torch.allclose(batch.images[0], torch.tensor(expected).permute(2, 0, 1).float())
