"""Labelled images: splits, decoding, and data that is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from tsvlib.errors import DataError
from tsvlib.held import HELD_BYTES
from tsvlib.images import load_images, write_images
from tsvlib.preprocessed import PreprocessedImages


@pytest.fixture
def folder(suite_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(suite_file.parent / "bright", tmp_path / "bright"))


def test_validation_is_a_tenth_of_train_and_disjoint(folder: Path) -> None:
    whole = {data for split in ("train", "validation") for data in load_images(folder, split).encoded()}
    assert len(load_images(folder, "validation")) == 4
    assert len(load_images(folder, "train")) == 36
    assert len(whole) == 40
    assert load_images(folder, "validation").digest == load_images(folder, "validation").digest
    assert load_images(folder, "validation").digest != load_images(folder, "train").digest


def test_own_validation_files_are_used(folder: Path) -> None:
    images = load_images(folder, "test")
    write_images(folder, "validation", list(images.encoded(range(6))), images.labels[:6].tolist())
    assert len(load_images(folder, "validation")) == 6
    assert len(load_images(folder, "train")) == 40


def test_decoding_gives_the_pixels(folder: Path) -> None:
    images = load_images(folder, "test")
    decoded = images.decode(torch.tensor([3, 0]), to_tensor)
    assert decoded.shape == (2, 3, 16, 16)
    assert decoded[0].mean() > decoded[1].mean()  # label 1 is light, label 0 dark


@pytest.mark.parametrize("most_bytes", [0, 3 * 32 * 32 * 4 * 5, HELD_BYTES])
def test_preprocessed_images_are_held_within_a_bound(folder: Path, most_bytes: int) -> None:
    images = load_images(folder, "test")
    decoded: list[int] = []

    def preprocess(image: Image.Image) -> torch.Tensor:
        decoded.append(1)
        return to_tensor(image.resize((32, 32)))

    held = PreprocessedImages(images, preprocess, most_bytes)
    for rows in (torch.tensor([3, 1, 2]), torch.tensor([1, 3, 0, 3]), torch.tensor([1])):
        batch, expected = held.read(rows), images.read(rows, lambda image: to_tensor(image.resize((32, 32))))
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)
        assert torch.equal(batch.rows, expected.rows)
    assert len(decoded) == (4 if most_bytes else 8)


def test_writing_is_stable_to_the_byte(folder: Path, tmp_path: Path) -> None:
    images = load_images(folder, "test")
    for name in ("one", "two"):
        write_images(tmp_path / name, "test", list(images.encoded()), images.labels.tolist())
    assert (tmp_path / "one" / "test.parquet").read_bytes() == (tmp_path / "two" / "test.parquet").read_bytes()


def test_unknown_split(folder: Path) -> None:
    with pytest.raises(DataError, match="split 'val': must be one of train, validation, test"):
        load_images(folder, "val")


def test_missing_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no images that are understood"):
        load_images(tmp_path, "test")


def test_label_without_a_name(folder: Path) -> None:
    (folder / "classes.json").write_text(json.dumps(["only"]))
    with pytest.raises(
        DataError, match=r"bright: label 1 has no class \(20 of 40 images have such labels\)\. There are 1 classes"
    ):
        load_images(folder, "test")


def test_broken_parquet(folder: Path) -> None:
    (folder / "test.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_images(folder, "test")


def test_broken_image(folder: Path) -> None:
    images = load_images(folder, "test")
    write_images(folder, "test", [b"<html>", *images.encoded(range(1, len(images)))], images.labels.tolist())
    with pytest.raises(
        DataError, match=r"an image cannot be decoded; the first is test\.parquet, row 0: no image that is known"
    ):
        load_images(folder, "test").decode(torch.tensor([0]), to_tensor)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "test", "train"), [("mnist", 2000, 7200), ("cifar10", 1500, 5400), ("gtsrb", 1500, 5400)]
)
def test_real_data_sets(real_images: Path, name: str, test: int, train: int) -> None:
    assert len(load_images(real_images / name, "test")) == test
    images = load_images(real_images / name, "train")
    assert len(images) == train
    assert images.decode(torch.tensor([0]), lambda image: to_tensor(image.resize((8, 8), Image.Resampling.BOX))).shape
