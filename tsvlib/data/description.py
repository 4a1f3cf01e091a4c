"""How a suite describes a data set: where it lies, and what is unusual about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

HUB_PREFIX = "hf://datasets/"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class DataDescription(BaseModel):
    """Where labelled images lie. In a suite a plain string stands for ``location`` alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    location: str
    """A folder, or ``hf://datasets/ORGANISATION/NAME[@REVISION]``; ``hub: ORGANISATION/NAME`` is the same."""
    kind: str | None = None
    """A reader's name: folder, parquet, webdataset or hub; found from the location by default."""
    config: str | None = None
    """Of a hub data set that has several: which one."""
    splits: dict[SplitName, str | None] = Field(default_factory=dict)
    """What the data set itself calls train, validation and test, where not so; null leaves one out."""
    sizes: dict[SplitName, int] = Field(default_factory=dict)
    """How many images each split must have; another number is told."""
    image: str | None = None
    """Column, or extension in a WebDataset, of the image; found by its usual names by default."""
    label: str | None = None
    """Column, or extension in a WebDataset, of the label; found by its usual names by default."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, written: Any) -> Any:
        if isinstance(written, str | Path):
            return {"location": str(written)}
        if isinstance(written, dict) and "hub" in written:
            rest = {key: value for key, value in written.items() if key != "hub"}
            if "location" in rest:
                raise ValueError("give either location or hub, not both")
            return {"location": f"{HUB_PREFIX}{written['hub']}", **rest}
        return written

    @field_validator("location")
    @classmethod
    def _is_an_address(cls, location: str) -> str:
        name = location.removeprefix(HUB_PREFIX).partition("@")[0]
        if location.startswith(HUB_PREFIX) and not _HUB_NAME.fullmatch(name):
            raise ValueError(f"{location!r} is no data set on the hub; write {HUB_PREFIX}ORGANISATION/NAME[@REVISION]")
        if location.startswith("hf://") and not location.startswith(HUB_PREFIX):
            raise ValueError(f"{location!r} is a model on the hub; a data set is {HUB_PREFIX}ORGANISATION/NAME")
        return location

    @property
    def on_hub(self) -> bool:
        return self.location.startswith(HUB_PREFIX)

    def at(self, folder: Path) -> DataDescription:
        """The same with a relative folder starting at another one."""
        return self if self.on_hub else self.model_copy(update={"location": str(folder / self.location)})

    def split_of(self, name: str) -> str | None:
        """Which of our splits a file or folder of this name belongs to, if any."""
        return next((split for split in SPLITS if self._pattern(split).search(name)), None)

    def _pattern(self, split: SplitName) -> re.Pattern[str]:
        words = [re.escape(self.splits[split] or _NO_WORD)] if split in self.splits else list(_USUAL_NAMES[split])
        return re.compile(rf"(?<![A-Za-z0-9])({'|'.join(words)})(?![A-Za-z0-9])", re.IGNORECASE)


_NO_WORD = "\0"
_USUAL_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
