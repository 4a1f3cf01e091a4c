"""What the tasks hand back: small frozen models."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from .blob import Blob

Work = dict[str, dict[str, int]]
"""Kind of what is kept -> {reused, computed}: how many were found again, and how many were made."""


class Made(BaseModel):
    """A file that a task made, what it was made with, and what it cost."""

    model_config = ConfigDict(frozen=True)

    blob: Blob
    seconds: float
    peak_rss_bytes: int
    """Of the whole process, so far."""
    work: Work = {}
    """What was reused and what was computed for it."""
    parameters: dict[str, Any] = {}
    alpha_curve: dict[float, float] = {}
    """alpha -> mean validation accuracy, where alpha was searched."""

    def record(self) -> dict[str, Any]:
        """All but the place, for the json beside the file."""
        return self.model_dump(mode="json", exclude={"blob"}) | {"digest": self.blob.digest, "bytes": self.blob.size}


class Accuracies(BaseModel):
    """Accuracy (0 to 1) per task of one candidate."""

    model_config = ConfigDict(frozen=True)

    accuracies: dict[str, float]
    seconds: float


class Alpha(BaseModel):
    """The scale chosen on validation, and the curve that it was chosen from."""

    model_config = ConfigDict(frozen=True)

    alpha: float
    curve: dict[float, float]
    seconds: float
