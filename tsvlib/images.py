"""Labelled images of one split: the paper's validation split, decoding on demand, and what to do with a bad image.

An image that cannot be decoded is left out, named in a warning and recorded; where more than 1 % of a split (and more
than one image) cannot, that is an error. Labels and class names are checked when a split is opened, before any work.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Generator, Tensor

from .data import SPLITS, DataDescription, Records, open_data
from .data.classes import ClassNames, label_numbers, prompt_names
from .data.decoding import UnreadableImage, decode_image
from .errors import DataError

log = logging.getLogger(__name__)

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 5000  # the paper's validation split, cut from train
MOST_UNREADABLE = 0.01
_PROBES = 16

Preprocess = Callable[[Image.Image], Tensor]


class Batch(NamedTuple):
    """Some images of a split, without those that cannot be decoded."""

    images: Tensor
    """Preprocessed, float (n, channels, height, width)."""
    labels: Tensor
    """Int64 (n,)."""
    rows: Tensor
    """Which images of the split they are, int64 (n,)."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with integer labels (n,); read and decoded on demand."""

    source: str
    labels: Tensor
    records: Records
    rows: Tensor
    """Which of the records, in order, int64 (n,)."""
    expected: int | None = None
    """How many images the suite says that there are."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """Of the images asked for so far, those that could not be decoded, and why."""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) over labels and encoded images, in order."""
        whole = hashlib.sha256(self.labels.numpy().tobytes())
        for image in self.encoded():
            whole.update(hashlib.sha256(image).digest())
        return whole.hexdigest()

    def subset(self, rows: Tensor) -> LabelledImages:
        """Some of the images, in the order given."""
        return LabelledImages(self.source, self.labels[rows], self.records, self.rows[rows])

    def spread(self, count: int) -> Tensor:
        """Rows of at most so many images, evenly spaced over the split, int64."""
        return torch.linspace(0, len(self) - 1, min(count, len(self))).long()

    def encoded(self, rows: Sequence[int] | None = None) -> Iterator[bytes]:
        """The images as they are stored."""
        return self.records.encoded((self.rows if rows is None else self.rows[list(rows)]).tolist())

    def name(self, row: int) -> str:
        """How messages name an image."""
        return self.records.name(int(self.rows[row]))

    def read(self, rows: Tensor, preprocess: Preprocess) -> Batch:
        """Decode and preprocess some images; those that cannot be decoded are left out and recorded.

        Raises:
            DataError: too many of the split cannot be decoded.
        """
        pictures, kept = [], []
        for row, encoded in zip(rows.tolist(), self.encoded(rows.tolist()), strict=True):
            try:
                pictures.append(preprocess(decode_image(encoded)))
                kept.append(row)
            except UnreadableImage as error:
                self._note(row, str(error))
        where = torch.tensor(kept, dtype=torch.long)
        return Batch(torch.stack(pictures) if kept else torch.empty(0), self.labels[where], where)

    def decode(self, rows: Tensor, preprocess: Preprocess) -> Tensor:
        """Preprocessed images, float (len(rows), channels, height, width).

        Raises:
            DataError: one of them cannot be decoded.
        """
        batch = self.read(rows, preprocess)
        if len(batch.rows) < len(rows):
            raise DataError(f"{self.source}: an image cannot be decoded; {self._first_unreadable()}.")
        return batch.images

    def batches(self, size: int, preprocess: Preprocess, order: Tensor | None = None) -> Iterator[Batch]:
        """All images in batches of at most ``size``."""
        for part in (torch.arange(len(self)) if order is None else order).split(size):
            if len((batch := self.read(part, preprocess)).rows):
                yield batch

    def probe(self) -> None:
        """Decode a few images spread over the split, so that data which is wrong altogether is told before any work.

        Raises:
            DataError: more than one of them cannot be decoded.
        """
        some = self.spread(_PROBES)
        bad = {}
        for row, encoded in zip(some.tolist(), self.encoded(some.tolist()), strict=True):
            try:
                decode_image(encoded)
            except UnreadableImage as error:
                bad[row] = str(error)
        if len(bad) > 1:
            row, why = next(iter(bad.items()))
            raise DataError(
                f"{self.source}: {len(bad)} of {len(some)} images tried cannot be decoded, such as {self.name(row)}: "
                f"{why}. Check the data with 'tsv suites check --images'."
            )

    def _note(self, row: int, why: str) -> None:
        if row in self.unreadable:
            return
        self.unreadable[row] = why
        log.warning("%s: %s is left out, it cannot be decoded: %s", self.source, self.name(row), why)
        if len(self.unreadable) > max(1, MOST_UNREADABLE * len(self)):
            raise DataError(
                f"{self.source}: {len(self.unreadable)} of {len(self):,} images cannot be decoded, more than "
                f"{MOST_UNREADABLE:.0%}; {self._first_unreadable()}. 'tsv suites check --images' lists them all."
            )

    def _first_unreadable(self) -> str:
        row = min(self.unreadable)
        return f"the first is {self.name(row)}: {self.unreadable[row]}"


def class_names(data: DataDescription | str | Path, classes: ClassNames | None = None) -> list[str]:
    """The class names that prompts are made of, in label order.

    Args:
        data: where the images lie.
        classes: what the suite says.

    Raises:
        DataError: neither the suite nor the data names the classes, or they disagree.
    """
    if isinstance(classes, Mapping):
        return prompt_names(classes, None, str(data))
    return prompt_names(classes, open_data(data).classes, _source(data))


def load_images(data: DataDescription | str | Path, split: str, classes: ClassNames | None = None) -> LabelledImages:
    """Open one split.

    Where the data has no validation images, validation is min(10 %, 5000) of train drawn with seed 0, and train
    is the rest (Gargiulo et al. 2025, as in the authors' evaluation).

    Args:
        data: where the images lie.
        split: train, validation or test.
        classes: what the suite says; the data's own names by default.

    Raises:
        DataError: no such folder or split, no class names, or a label without a class.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: must be one of {', '.join(SPLITS)}.")
    reader, source = open_data(data), _source(data)
    held_out = split != "test" and not reader.files("validation")
    records = reader.records("train" if held_out else split)
    numbers = label_numbers(records.labels, classes, reader.classes, source)
    labels = torch.tensor(numbers, dtype=torch.long)
    sizes = data.sizes if isinstance(data, DataDescription) else {}
    rows = torch.arange(len(labels))
    if held_out:
        order = torch.randperm(len(labels), generator=Generator().manual_seed(0))
        count = min(int(VALIDATION_SHARE * len(labels)), VALIDATION_MOST)
        rows = order[:count] if split == "validation" else order[count:]
    images = LabelledImages(f"{source} ({split})", labels[rows], records, rows, sizes.get(split))  # type: ignore[call-overload]
    _tell_what_is_odd(images, prompt_names(classes, reader.classes, source))
    return images


def _source(data: DataDescription | str | Path) -> str:
    return data.location if isinstance(data, DataDescription) else str(data)


def _tell_what_is_odd(images: LabelledImages, classes: list[str]) -> None:
    if images.expected is not None and images.expected != len(images):
        log.warning("%s: has %d images, the suite expects %d.", images.source, len(images), images.expected)
    present = Counter(images.labels.tolist())
    if empty := [name for number, name in enumerate(classes) if not present[number]]:
        named = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        log.warning("%s: no image of %d of %d classes: %s.", images.source, len(empty), len(classes), named)


def write_images(folder: Path, split: str, encoded: Sequence[bytes], labels: Sequence[int]) -> None:
    """Write one split as a parquet file that ``load_images`` reads; byte-stable."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": data, "path": None} for data in encoded]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"image": pa.array(rows, kind), "label": pa.array(labels, pa.int64())}), folder / f"{split}.parquet"
    )
