"""A folder of image files: ``SPLIT/CLASS/picture.jpg``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from ..errors import DataError
from .classes import classes_file
from .description import SPLITS, DataDescription
from .reader import Reader, Records, no_split, reader


class FolderReader(Reader):
    """Folders of splits, in each a folder of every class."""

    def __init__(self, data: DataDescription) -> None:
        super().__init__(data)
        self._root = Path(data.location)
        self._folders = {split: folder for folder in _folders(self._root) if (split := data.split_of(folder.name))}
        if not self._folders:
            raise DataError(
                f"{self._root}: holds no images that are understood. Arrange them as train/CLASS/*.jpg and "
                "test/CLASS/*.jpg (validation/ if you have one), or give parquet files or tar shards."
            )

    @cached_property
    def classes(self) -> list[str]:
        listed = classes_file(self._root)
        found = {folder.name for split in self._folders.values() for folder in _folders(split)}
        if listed and (unlisted := sorted(found - set(listed))):
            raise DataError(f"{self._root}: the folder {unlisted[0]!r} is no class of classes.json. Add it there.")
        return listed or sorted(found)

    def files(self, split: str) -> list[Path]:
        folder = self._folders.get(split)
        known = _extensions()
        return [
            file
            for name in self.classes
            for file in sorted((folder / name).rglob("*") if folder else ())
            if file.suffix.lower() in known and not file.name.startswith(".")
        ]

    def records(self, split: str) -> Records:
        files = self.files(split)
        if not files:
            raise no_split(self.data, split, "image")
        return FolderRecords(self._folders[split], files)


@reader("folder")
def open_folder(data: DataDescription) -> Reader:
    """Image files in a folder for each class."""
    return FolderReader(data)


class FolderRecords(Records):
    """Image files whose label is the name of their folder."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._folder, self._files = folder, list(files)
        self.labels = [file.relative_to(folder).parts[0] for file in self._files]

    def encoded(self, rows: Sequence[int]) -> Iterator[bytes]:
        for row in rows:
            try:
                yield self._files[row].read_bytes()
            except OSError:  # removed, or not ours to read, since it was listed
                yield b""

    def name(self, row: int) -> str:
        return str(self._files[row].relative_to(self._folder.parent))


def has_splits(folder: Path) -> bool:
    """Whether a folder is laid out as this reader wants it."""
    data = DataDescription(location=str(folder))
    return any(data.split_of(below.name) in SPLITS and _folders(below) for below in _folders(folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(below for below in folder.iterdir() if below.is_dir() and not below.name.startswith("."))


def _extensions() -> set[str]:
    """Of files that Pillow may read."""
    known = Image.registered_extensions()
    return {extension for extension, kind in known.items() if kind in Image.OPEN}
