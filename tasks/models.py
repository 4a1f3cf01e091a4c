"""What the tasks hand back: small frozen models."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tsvlib.kept import KeptMatrix

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
    flow_run: str = ""
    """In which it was made."""
    parameters: dict[str, Any] = {}
    alpha_curve: dict[float, float] = {}
    """alpha -> mean validation accuracy, where alpha was searched."""
    kept: list[KeptMatrix] = []
    """Matrix by matrix, what of the tasks is kept and how much it interferes, where factors tell."""

    def record(self) -> dict[str, Any]:
        """All but the place, for the json beside the file."""
        return self.model_dump(mode="json", exclude={"blob", "flow_run"}) | {
            "digest": self.blob.digest,
            "bytes": self.blob.size,
        }


class Factorised(BaseModel):
    """That the factors of a task are in the cache."""

    model_config = ConfigDict(frozen=True)

    work: Work = {}
    flow_run: str = ""


class Answered(BaseModel):
    """A candidate's answers to the images of one split, as a file of tensors by task."""

    model_config = ConfigDict(frozen=True)

    answers: Blob
    seconds: float


class Chosen(BaseModel):
    """A method's parameters as chosen on validation, and how accuracy depends on alpha."""

    model_config = ConfigDict(frozen=True)

    parameters: dict[str, Any]
    alpha_curve: dict[float, float]
    seconds: float
