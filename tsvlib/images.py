"""Labelled images on disk, in the layout of a hub data set: parquet files of encoded images beside classes.json.

``<folder>/<split>*.parquet`` with the columns ``image`` (struct of ``bytes`` and ``path``, or plain bytes) and
``label`` (integer); ``<folder>/classes.json`` lists the class names in label order.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

from .errors import DataError

SPLITS = ("train", "validation", "test")
VALIDATION_SHARE, VALIDATION_MOST = 0.1, 5000  # the paper's validation split, cut from train


@dataclass(frozen=True)
class LabelledImages:
    """Encoded images with integer labels (n,); decoded on demand."""

    source: str
    encoded: list[bytes]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.encoded)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) over labels and encoded images, in order."""
        whole = hashlib.sha256(self.labels.numpy().tobytes())
        for image in self.encoded:
            whole.update(hashlib.sha256(image).digest())
        return whole.hexdigest()

    def subset(self, rows: Tensor) -> LabelledImages:
        return LabelledImages(self.source, [self.encoded[i] for i in rows.tolist()], self.labels[rows])

    def decode(self, rows: Tensor, preprocess: Callable[[Image.Image], Tensor]) -> Tensor:
        """Preprocessed images, float (len(rows), channels, height, width)."""
        pictures = []
        for i in rows.tolist():
            try:
                with Image.open(io.BytesIO(self.encoded[i])) as image:
                    pictures.append(preprocess(image.convert("RGB")))
            except (UnidentifiedImageError, OSError) as error:
                raise DataError(f"{self.source}: image {i} cannot be decoded: {error}") from error
        return torch.stack(pictures)

    def batches(
        self, size: int, preprocess: Callable[[Image.Image], Tensor], order: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) in batches of at most ``size``."""
        rows = torch.arange(len(self)) if order is None else order
        for part in rows.split(size):
            yield self.decode(part, preprocess), self.labels[part]


def class_names(folder: Path) -> list[str]:
    """The class names of a data folder.

    Raises:
        DataError: there is no classes.json, or it is no list of distinct names.
    """
    file = folder / "classes.json"
    if not file.is_file():
        raise DataError(f"{file}: missing. Write the class names there as a JSON list, in label order.")
    names = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(names, list) or len(set(names)) != len(names):
        raise DataError(f"{file}: must be a JSON list of distinct class names.")
    return names


def load_images(folder: Path, split: str) -> LabelledImages:
    """Read one split.

    Where the folder has no validation files, validation is min(10 %, 5000) of train drawn with seed 0, and train
    is the rest (Gargiulo et al. 2025, as in the authors' evaluation).

    Raises:
        DataError: no such folder or split, a wrong column, or a label without a class name.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: must be one of {', '.join(SPLITS)}.")
    if split == "test" or _files(folder, "validation"):
        return _read(folder, split)
    whole = _read(folder, "train")
    order = torch.randperm(len(whole), generator=Generator().manual_seed(0))
    held_out = min(int(VALIDATION_SHARE * len(whole)), VALIDATION_MOST)
    return whole.subset(order[:held_out] if split == "validation" else order[held_out:])


def _files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}*.parquet"))


def _read(folder: Path, split: str) -> LabelledImages:
    files = _files(folder, split)
    if not files:
        raise DataError(f"{folder}: no {split}*.parquet there. Check the suite's 'data', or make it ('dvc repro').")
    try:
        table = pa.concat_tables([pq.read_table(file, columns=["image", "label"]) for file in files])
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise DataError(f"{files[0]}: cannot be read as parquet with the columns image and label: {error}") from error
    images = table.column("image").to_pylist()
    encoded = [image["bytes"] if isinstance(image, dict) else image for image in images]
    labels = torch.tensor(table.column("label").to_pylist(), dtype=torch.long)
    count = len(class_names(folder))
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
        raise DataError(f"{files[0]}: label {int(labels.max())} has no name; {folder / 'classes.json'} lists {count}.")
    return LabelledImages(str(folder), encoded, labels)


def write_images(folder: Path, split: str, encoded: list[bytes], labels: list[int]) -> None:
    """Write one split in the layout that ``load_images`` reads; byte-stable."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": data, "path": None} for data in encoded]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())}), folder / f"{split}.parquet"
    )
