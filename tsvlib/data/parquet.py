"""Parquet files of encoded images, in the layout of the Hugging Face hub.

Each row has an image (a struct with ``bytes``, or plain bytes) and a label (an integer, a boolean or a class name).
Row groups are read when an image of them is asked for; the newest ones stay in memory, up to a number of bytes.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from .classes import classes_file
from .description import DataDescription
from .reader import Label, Reader, Records, no_split, reader

CACHE_BYTES = 2**27
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "cls", "fine_label", "class", "category")


class ParquetReader(Reader):
    """Parquet files of a folder, or those given."""

    def __init__(self, data: DataDescription, given: dict[str, list[Path]] | None = None) -> None:
        super().__init__(data)
        self._given = given

    @cached_property
    def classes(self) -> list[str] | None:
        if self._given is None and (listed := classes_file(Path(self.data.location))):
            return listed
        files = [file for split in ("train", "test", "validation") for file in self.files(split)]
        return _names_in_schema(files[0], self.data) if files else None

    def files(self, split: str) -> list[Path]:
        if self._given is not None:
            return self._given.get(split, [])
        root = Path(self.data.location)
        found = sorted(root.rglob("*.parquet"))
        return [file for file in found if self.data.split_of(str(file.relative_to(root))) == split]

    def records(self, split: str) -> Records:
        files = self.files(split)
        if not files:
            raise no_split(self.data, split, "parquet file")
        return ParquetRecords(files, self.data)


@reader("parquet")
def open_parquet(data: DataDescription) -> Reader:
    """Parquet files below a folder."""
    return ParquetReader(data)


class ParquetRecords(Records):
    """Rows of parquet files, one after another."""

    def __init__(self, files: Sequence[Path], data: DataDescription) -> None:
        self._files = list(files)
        self._image, label = _columns(self._files[0], data)
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        self._ends: list[int] = []  # rows up to the end of each row group
        labels: list[Label] = []
        for number, file in enumerate(self._files):
            with _readable(file), pq.ParquetFile(file) as opened:
                for group in range(opened.metadata.num_row_groups):
                    self._groups.append((number, group))
                    labels += _labels(opened.read_row_group(group, columns=[label]).column(0), file, label)
                    self._ends.append(len(labels))
        self.labels = labels
        self._clear()

    def _clear(self) -> None:
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._clear()

    def encoded(self, rows: Sequence[int]) -> Iterator[bytes]:
        for row in rows:
            group = bisect_right(self._ends, row)
            images = self._group(group)
            value = images[row - (self._ends[group - 1] if group else 0)].as_py()
            yield (value.get("bytes") if isinstance(value, dict) else value) or b""

    def name(self, row: int) -> str:
        number, _ = self._groups[bisect_right(self._ends, row)]
        before = max((end for (n, _), end in zip(self._groups, self._ends, strict=True) if n < number), default=0)
        return f"{self._files[number].name}, row {row - before}"

    def _group(self, group: int) -> Any:
        with self._lock:
            if group not in self._kept:
                number, within = self._groups[group]
                file = self._files[number]
                with _readable(file), pq.ParquetFile(file) as opened:
                    self._kept[group] = opened.read_row_group(within, columns=[self._image]).column(0)
                while len(self._kept) > 1 and sum(column.nbytes for column in self._kept.values()) > CACHE_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            return self._kept[group]


class _readable:
    """Tells what is wrong with a parquet file in plain words."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pa.ArrowException | OSError | KeyError):
            raise DataError(f"{self.file}: cannot be read as parquet: {error}") from error


def _schema(file: Path) -> pa.Schema:
    with _readable(file):
        return pq.read_schema(file)


def _columns(file: Path, data: DataDescription) -> tuple[str, str]:
    names = _schema(file).names
    chosen = []
    for what, asked, usual in (("image", data.image, _IMAGE_COLUMNS), ("label", data.label, _LABEL_COLUMNS)):
        column = asked if asked in names else next((name for name in usual if not asked and name in names), None)
        if column is None:
            raise DataError(
                f"{file}: no column {asked or what!r}. Write which of {', '.join(names)} it is as '{what}' of the "
                "suite's data."
            )
        chosen.append(column)
    return chosen[0], chosen[1]


def _labels(column: pa.ChunkedArray, file: Path, name: str) -> list[Label]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"{file}: the column {name!r} holds {kind}; labels are whole numbers or class names.")
    if column.null_count:
        raise DataError(f"{file}: {column.null_count} rows of the column {name!r} have no label; remove these rows.")
    return column.to_pylist()


def _names_in_schema(file: Path, data: DataDescription) -> list[str] | None:
    """What the ``datasets`` library wrote about the label column."""
    note = (_schema(file).metadata or {}).get(b"huggingface")
    if not note:
        return None
    _, label = _columns(file, data)
    try:
        names = json.loads(note)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names]
