"""What a reader of labelled images gives, and the registry of readers."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from ..errors import DataError, did_you_mean
from .description import DataDescription

Label = int | str
CLASSES_FILE = "classes.json"


class Records(ABC):
    """Encoded images of one split, in a fixed order. Labels are in memory, images are read when asked for.

    It can be pickled, so that worker processes read for themselves.
    """

    labels: Sequence[Label]
    """As the data has them: the number of a class, or its name."""

    @abstractmethod
    def encoded(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The bytes of these images, in this order; empty where there are none."""

    @abstractmethod
    def name(self, row: int) -> str:
        """How messages name an image."""


class Reader(ABC):
    """A data set on this machine."""

    def __init__(self, data: DataDescription) -> None:
        self.data = data

    @property
    @abstractmethod
    def classes(self) -> list[str] | None:
        """Class names that the data carries, in label order; None if it carries none."""

    @abstractmethod
    def files(self, split: str) -> list[Path]:
        """The files of a split, in the order of its records; empty if it has no such split."""

    def evaluated_files(self, split: str) -> list[Path]:
        """Every file that decides what an evaluation on a split sees, its class names included."""
        wanted = ["validation", "train"] if split == "validation" else [split]
        files = next((files for one in wanted if (files := self.files(one))), [])
        names = Path(self.data.location) / CLASSES_FILE
        return [*files, names] if names.is_file() else files

    @abstractmethod
    def records(self, split: str) -> Records:
        """One split.

        Raises:
            DataError: there is no such split, or a file of it cannot be read.
        """


OpenReader = Callable[[DataDescription], Reader]
_KINDS: dict[str, OpenReader] = {}


def reader(kind: str) -> Callable[[OpenReader], OpenReader]:
    """Register what opens data sets of a kind."""

    def register(function: OpenReader) -> OpenReader:
        _KINDS[kind] = function
        return function

    return register


def data_kinds() -> list[str]:
    """The kinds of data set that can be read."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")  # each registers what it reads
    return sorted(_KINDS)


def open_data(data: DataDescription | str | Path) -> Reader:
    """Open a data set; of one on the hub, only the list of its files is asked for.

    Raises:
        DataError: there is nothing there, or it is of no known kind.
    """
    described = data if isinstance(data, DataDescription) else DataDescription(location=str(data))
    kind, known = described.kind or _kind_of(described), data_kinds()
    if kind not in known:
        raise DataError(f"{described.location}: kind {kind!r} is unknown.{did_you_mean(kind, known)}")
    return _KINDS[kind](described)


def _kind_of(data: DataDescription) -> str:
    if data.on_hub:
        return "hub"
    root = Path(data.location)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder. Check the suite's 'data', or make it ('dvc repro'); a data set on the hub is "
            "written hf://datasets/ORGANISATION/NAME."
        )
    for suffix, kind in ((".parquet", "parquet"), (".tar", "webdataset")):
        if next(root.rglob(f"*{suffix}"), None):
            return kind
    return "folder"


class MissingSplitError(DataError):
    """A data set has no split of that name."""


def no_split(data: DataDescription, split: str, what: str) -> MissingSplitError:
    """The error for a split that is not there."""
    called = data.splits.get(split, split)  # type: ignore[call-overload]
    return MissingSplitError(
        f"{data.location}: no {what} of the split {called!r} there. Name what it is called under 'splits' of the "
        "suite's data, or make it ('dvc repro')."
    )
