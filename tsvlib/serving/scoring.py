"""Batch scoring: every image of files, folders and parquet tables, as rows of a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..atomic import atomic_write
from ..data.decoding import UnreadableImage
from ..errors import DataError
from ..parallel import in_parallel
from ..progress import Progress
from .classifier import BATCH, Classifier, Question

ROWS = 256  # of a parquet file read at a time

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("task", pa.string()),
        ("class", pa.string()),
        ("probability", pa.float32()),
        ("probabilities", pa.map_(pa.string(), pa.float32())),
        ("problem", pa.string()),
    ]
)
"""Of the table of scores; an image that cannot be decoded has a row with a problem and no class."""


class Named(NamedTuple):
    """A question and how the table names its image."""

    name: str
    question: Question


def read_images(paths: Iterable[Path], task: str | None = None) -> Iterator[Named]:
    """The images of files, of all files below folders, and of parquet tables.

    A table has a column ``image`` of bytes, or of structs that have ``bytes`` (as the ``datasets`` library writes), and
    may have a column ``task``.

    Args:
        paths: what to read, in order; a folder's files by name.
        task: of images whose table does not name one.

    Raises:
        DataError: a path that does not exist or holds no images.
    """
    for path in paths:
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if _is_image(file)]
            if not files:
                raise DataError(f"{path}: no images in there. Known: {', '.join(sorted(_suffixes()))}.")
            yield from (Named(str(file), Question(file.read_bytes(), task)) for file in files)
        elif not path.is_file():
            raise DataError(f"{path}: no such file or folder.")
        elif path.suffix == ".parquet":
            yield from _rows(path, task)
        else:
            yield Named(str(path), Question(path.read_bytes(), task))


def score(classifier: Classifier, images: Iterable[Named], top: int = 5) -> Iterator[list[dict]]:
    """Rows for the table of scores, a batch of images at a time.

    Args:
        classifier: answers.
        images: read as they are needed.
        top: how many classes' probabilities a row has.
    """

    def rows(batch: tuple[Named, ...]) -> list[dict]:
        answers = classifier.classify([one.question for one in batch])
        return [row for one, found in zip(batch, answers, strict=True) for row in _scored(one, found, top)]

    for _, found in in_parallel(rows, _batches(images)):
        yield found


def write_scores(rows: Iterable[list[dict]], out: Path, progress: Progress | None = None) -> int:
    """Write a table, batch by batch: parquet, or CSV by its name; how many rows.

    Args:
        rows: batches of rows.
        out: the file.
        progress: called with ("rows", rows so far, rows so far), as their number is not known before.

    Raises:
        DataError: a name that ends in neither.
    """
    if out.suffix not in (".parquet", ".csv"):
        raise DataError(f"{out}: name it .parquet or .csv.")
    counted = _Counted(rows, progress)
    with atomic_write(out) as file:
        if out.suffix == ".parquet":
            with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
                for batch in counted:
                    writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
        else:
            columns = [name for name in SCHEMA.names if name != "probabilities"]
            file.write((",".join(columns) + "\n").encode())
            for batch in counted:
                file.write(pd.DataFrame(batch, columns=columns).to_csv(index=False, header=False).encode())
    return counted.count


class _Counted:
    """Batches that pass by, counted."""

    def __init__(self, rows: Iterable[list[dict]], progress: Progress | None) -> None:
        self._rows, self._progress, self.count = rows, progress, 0

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._rows:
            yield batch
            self.count += len(batch)
            if self._progress:
                self._progress("rows", self.count, self.count)


def _batches(images: Iterable[Named]) -> Iterator[tuple[Named, ...]]:
    reading = iter(images)
    while batch := tuple(itertools.islice(reading, BATCH)):
        yield batch


def _scored(one: Named, found: list | UnreadableImage, top: int) -> list[dict]:
    if isinstance(found, UnreadableImage):
        return [{"image": one.name, "task": one.question.task, "problem": str(found)}]
    rows = []
    for answer in found:
        best, probability = answer.best
        row = {"image": one.name, "task": answer.task, "class": best, "probability": probability}
        rows.append(row | {"probabilities": list(answer.top(top).items())})
    return rows


def _rows(path: Path, task: str | None) -> Iterator[Named]:
    try:
        file = pq.ParquetFile(path)
        columns = file.schema_arrow.names
        if "image" not in columns:
            raise DataError(f"{path}: has no column 'image', but {', '.join(columns)}.")
        wanted = [name for name in ("image", "task") if name in columns]
        number = itertools.count()
        for batch in file.iter_batches(ROWS, columns=wanted):
            for row in batch.to_pylist():
                image = row["image"].get("bytes") if isinstance(row["image"], dict) else row["image"]
                if not isinstance(image, bytes | None):
                    raise DataError(f"{path}: the column 'image' holds {type(image).__name__}, not bytes.")
                yield Named(f"{path}#{next(number)}", Question(image or b"", row.get("task") or task))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _suffixes() and not file.name.startswith(".") and file.is_file()


def _suffixes() -> set[str]:
    return set(Image.registered_extensions())
