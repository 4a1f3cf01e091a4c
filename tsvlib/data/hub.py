"""Data sets on the Hugging Face hub: their parquet files or tar shards, fetched into the store split by split.

Which files make up a split is what the ``datasets`` library would say: the ``configs`` of the repository's card, else
the names of folders and files; of a repository that has neither parquet nor tar files, those that the hub itself has
converted to parquet (its branch ``refs/convert/parquet``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from ..downloads import Downloads
from ..errors import CheckpointError, DataError, UnreachableError, did_you_mean
from ..sources.hub import Repository, find_repository
from ..sources.location import File, Location
from .description import HUB_PREFIX, DataDescription
from .parquet import ParquetReader
from .reader import MissingSplitError, Reader, Records, no_split, reader
from .webdataset import NAMES_FILE, WebDatasetReader, names_of

CONVERTED = "refs/convert/parquet"
_SUFFIXES = (".parquet", ".tar")


class HubReader(Reader):
    """A data set on the hub. A split is fetched when it is first read; a label or a name needs one too."""

    def __init__(self, data: DataDescription) -> None:
        super().__init__(data)
        self._name, _, revision = data.location.removeprefix(HUB_PREFIX).partition("@")
        self._revision = revision or None

    @cached_property
    def classes(self) -> list[str] | None:
        from_the_smallest = ("test", "validation", "train")
        for split in sorted(from_the_smallest, key=lambda split: not self._fetched.get(split)):
            if self.files(split):
                return self._local(split).classes
        raise no_split(self.data, "test", "parquet or tar file")

    def files(self, split: str) -> list[Path]:
        try:
            return self._local(split).files(split)
        except MissingSplitError:
            return []

    def records(self, split: str) -> Records:
        return self._local(split).records(split)

    @cached_property
    def _fetched(self) -> dict[str, dict[str, Path]]:
        return {}

    def _local(self, split: str) -> Reader:
        """A reader of the fetched files of one split."""
        if split not in self._fetched:
            self._fetched[split] = self._fetch(split)
        paths = [path for name, path in self._fetched[split].items() if name.endswith(_SUFFIXES)]
        if not paths:
            raise no_split(self.data, split, "parquet or tar file")
        given = {split: paths}
        if any(name.endswith(".tar") for name in self._fetched[split]):
            listed = self._fetched[split].get(NAMES_FILE)
            return WebDatasetReader(self.data, given, names_of(listed.read_text(encoding="utf-8")) if listed else None)
        return ParquetReader(self.data, given)

    def _fetch(self, split: str) -> dict[str, Path]:
        """Name in the repository -> the local copy, of every file of a split."""
        store = Downloads()
        key = "#".join(filter(None, (self.data.location, self.data.config, split)))
        try:
            names = self._paths.get(split, [])
            extra = [NAMES_FILE] if NAMES_FILE in self._repository.entries else []
            files = {name: store.fetch(self._repository.file(name)) for name in [*names, *extra]} if names else {}
        except UnreachableError:
            if not (known := store.recall(key)):
                raise
            return {name: _path(known.file(name)) for name in known.names}
        except CheckpointError as error:
            raise DataError(str(error)) from error
        # a split that is not there is remembered too, or it would be asked for again offline
        store.remember(Location(key, next(iter(files), ""), files.__getitem__, list(files)), files)
        return {name: _path(file) for name, file in files.items()}

    @cached_property
    def _repository(self) -> Repository:
        whole = find_repository(self.data.location, self._name, self._revision, "dataset")
        if not any(name.endswith(_SUFFIXES) for name in whole.entries) and self._revision is None:
            return find_repository(self.data.location, self._name, CONVERTED, "dataset")
        return whole

    @cached_property
    def _paths(self) -> dict[str, list[str]]:
        """Split -> names of its files in the repository."""
        names = sorted(name for name in self._repository.entries if name.endswith(_SUFFIXES))
        described = {str(config.get("config_name")): config for config in self._repository.card.get("configs") or []}
        if described and self._repository.kind and "data_files" in next(iter(described.values())):
            return self._described(names, self._config(described))
        folders = {name.partition("/")[0]: None for name in names if name.count("/")}
        configs = [folder for folder in folders if not self.data.split_of(folder) and folder != "data"]
        if configs:
            folder = self._config(dict.fromkeys(configs))
            names = [name for name in names if name.startswith(f"{folder}/")]
            return self._by_name({name.removeprefix(f"{folder}/"): name for name in names})
        return self._by_name({name: name for name in names})

    def _config(self, known: Mapping[str, Any]) -> str:
        only = next(iter(known)) if len(known) == 1 else "default"
        wanted = self.data.config or only
        if wanted not in known:
            asked = f"no configuration {wanted!r}." if self.data.config else "several; name one as 'config'."
            raise DataError(f"{self.data.location}: has {asked}{did_you_mean(wanted, known)}")
        return wanted

    def _by_name(self, names: Mapping[str, str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for below, name in names.items():
            if split := self.data.split_of(below):
                found.setdefault(split, []).append(name)
        return found

    def _described(self, names: list[str], config: str) -> dict[str, list[str]]:
        configs = self._repository.card["configs"]
        files = next(one["data_files"] for one in configs if str(one.get("config_name")) == config)
        if isinstance(files, str | list) and not (files and isinstance(files[0], dict)):
            files = [{"split": "train", "path": files}]
        found: dict[str, list[str]] = {}
        for entry in files:
            patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
            if split := self.data.split_of(entry["split"]):
                found[split] = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
        return found


@reader("hub")
def open_on_hub(data: DataDescription) -> Reader:
    """A data set on the hub."""
    if not data.on_hub:
        raise DataError(f"{data.location}: is not on the hub; write {HUB_PREFIX}ORGANISATION/NAME.")
    return HubReader(data)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern of a card names a file; ``*`` stays within a folder, ``**`` does not."""
    if "**" in pattern:
        return fnmatchcase(name, re.sub(r"\*\*/?", "*", pattern))
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _path(file: File) -> Path:
    if file.path is None:
        raise DataError(f"{file.uri}: was not fetched.")
    return file.path
