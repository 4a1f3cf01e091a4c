"""WebDatasets: tar shards in which the files of one example share a name and differ in extension.

``SPLIT-000.tar`` or ``SPLIT/000.tar`` with ``0001.jpg`` and ``0001.cls`` (the class's number or name); the class names
in ``classnames.txt``, one a line, or ``classes.json`` beside them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ..errors import DataError
from .classes import classes_file
from .description import DataDescription
from .reader import Label, Reader, Records, no_split, reader

NAMES_FILE = "classnames.txt"
_IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "tif", "tiff")
_LABELS = ("cls", "label", "txt")


class WebDatasetReader(Reader):
    """Tar shards of a folder, or those given."""

    def __init__(
        self, data: DataDescription, given: dict[str, list[Path]] | None = None, names: list[str] | None = None
    ) -> None:
        super().__init__(data)
        self._given, self._names = given, names

    @cached_property
    def classes(self) -> list[str] | None:
        if self._given is not None:
            return self._names
        folder = Path(self.data.location)
        listed = folder / NAMES_FILE
        return names_of(listed.read_text(encoding="utf-8")) if listed.is_file() else classes_file(folder)

    def files(self, split: str) -> list[Path]:
        if self._given is not None:
            return self._given.get(split, [])
        root = Path(self.data.location)
        shards = sorted(root.rglob("*.tar"))
        return [shard for shard in shards if self.data.split_of(str(shard.relative_to(root))) == split]

    def records(self, split: str) -> Records:
        shards = self.files(split)
        if not shards:
            raise no_split(self.data, split, "tar shard")
        return WebDatasetRecords(shards, self.data)


@reader("webdataset")
def open_webdataset(data: DataDescription) -> Reader:
    """Tar shards below a folder."""
    return WebDatasetReader(data)


def names_of(text: str) -> list[str]:
    """The class names of a ``classnames.txt``."""
    return [line.strip() for line in text.splitlines() if line.strip()]


class WebDatasetRecords(Records):
    """Examples of tar shards, one after another; images are read at their place in the shard."""

    def __init__(self, shards: Sequence[Path], data: DataDescription) -> None:
        self._shards = list(shards)
        self._places: list[tuple[int, str, int, int]] = []  # (shard, name, first byte, bytes)
        labels: list[Label] = []
        for number, shard in enumerate(self._shards):
            for name, image, label in _examples(shard, data):
                self._places.append((number, name, image.offset_data, image.size))
                labels.append(label)
        self.labels = labels

    def encoded(self, rows: Sequence[int]) -> Iterator[bytes]:
        for row in rows:
            number, _, first, size = self._places[row]
            with self._shards[number].open("rb") as shard:
                shard.seek(first)
                yield shard.read(size)

    def name(self, row: int) -> str:
        number, name, _, _ = self._places[row]
        return f"{self._shards[number].name}, {name}"


def _examples(shard: Path, data: DataDescription) -> Iterator[tuple[str, tarfile.TarInfo, Label]]:
    """(name of the image, where it lies, label) of every example."""
    images = (data.image,) if data.image else _IMAGES
    labels = (data.label,) if data.label else _LABELS
    waiting: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(shard, "r:") as opened:
            for member in opened:
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                waiting.setdefault(folder + slash + stem, {})[extension.lower()] = member
            for example, parts in waiting.items():
                image = next((parts[one] for one in images if one in parts), None)
                label = next((parts[one] for one in labels if one in parts), None)
                if image is None and label is None:
                    continue  # of another kind, such as a note about the shard
                if image is None or label is None:
                    lacking = "image" if image is None else "label"
                    raise DataError(
                        f"{shard}: example {example!r} has no {lacking}, only {', '.join(sorted(parts))}. Write its "
                        f"extension as '{lacking}' of the suite's data."
                    )
                content = opened.extractfile(label)
                yield image.name, image, _label(content.read() if content else b"", shard, example)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{shard}: cannot be read as a tar file without compression: {error}") from error


def _label(written: bytes, shard: Path, example: str) -> Label:
    try:
        text = written.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{shard}: the label of example {example!r} is no text.") from error
    return int(text) if text.lstrip("-").isdigit() else text
