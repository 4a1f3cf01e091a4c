"""Candidates: anything that can be evaluated on a suite, with the bytes that it takes to store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .archive import open_archive
from .checkpoint import Checkpoint, open_checkpoint
from .errors import CheckpointError
from .suite import Suite

ZERO_SHOT, FINE_TUNED = "zero-shot", "fine-tuned"  # the references of every comparison
REFERENCES = (ZERO_SHOT, FINE_TUNED)
REFERENCE = "reference"


@dataclass(frozen=True)
class Candidate:
    """Encoder weights for every task, the same or different ones."""

    name: str
    weights_of: Callable[[str], Mapping[str, Tensor]]
    """The encoder of a task. The same object for tasks that share it, so that it is loaded once."""
    key_of: Callable[[str], str] | None = None
    """What tells the encoder of a task from others; None: its answers are not kept."""
    bytes: int = 0
    """On disk, of the files that are this candidate's own; an archive's base is not counted."""
    digest: str = ""
    kind: str = "merged"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The method and its parameters, as far as the file's header tells."""

    @property
    def origin(self) -> dict[str, Any]:
        """What it is and how it was made, for the record of its answers."""
        return {"kind": self.kind, "digest": self.digest, "parameters": dict(self.parameters)}


def kind_of(name: str, header: Mapping[str, Any]) -> str:
    """reference, archive or merged, by a candidate's name and its file's header."""
    if name in REFERENCES:
        return REFERENCE
    return "archive" if header.get("kind") == "archive" else "merged"


def zero_shot(suite: Suite) -> Candidate:
    """The base itself."""
    return from_file(suite.base_uri, suite, ZERO_SHOT)


def fine_tuned(suite: Suite) -> Candidate:
    """Every task's own fine-tuned checkpoint: the reference of normalised accuracy."""
    opened = {task: open_checkpoint(uri) for task, uri in suite.checkpoints.items()}
    size = sum(_size(checkpoint) for checkpoint in opened.values())
    digests = "-".join(checkpoint.digest[:8] for checkpoint in opened.values())
    made_by = {"method": FINE_TUNED}
    weights_of = opened.__getitem__
    return Candidate(FINE_TUNED, weights_of, lambda task: opened[task].digest, size, digests, REFERENCE, made_by)


def from_file(path: str | Path, suite: Suite, name: str | None = None) -> Candidate:
    """A checkpoint that serves all tasks, or an archive read as each task in turn.

    Raises:
        CheckpointError: missing or unreadable; or an archive that lacks a task of the suite.
    """
    file = open_checkpoint(path)
    size = _size(file)
    name = name or Path(path).stem
    kind, made_by = kind_of(name, file.metadata), _made_by(name, file.metadata)
    if file.metadata.get("kind") != "archive":
        return Candidate(name, lambda task: file, lambda task: file.digest, size, file.digest, kind, made_by)
    archive = open_archive(path)
    if missing := suite.tasks.keys() - set(archive.tasks):
        raise CheckpointError(f"{path}: the archive has no task {', '.join(sorted(missing))} of suite {suite.name!r}.")
    base = open_checkpoint(suite.base_uri)
    return Candidate(
        name,
        lambda task: archive.extract(task, base),
        lambda task: f"{file.digest} {base.digest} {task}",
        size,
        file.digest,
        kind,
        made_by,
    )


def _made_by(name: str, header: Mapping[str, Any]) -> dict[str, Any]:
    """Method and parameters; of an archive, whose tasks may have been added one by one, what all of them share."""
    if name == ZERO_SHOT or "method" not in header:
        return {"method": name}
    makings = header["made"].values() if "made" in header else [header]
    first, *others = [making.get("parameters", {}) for making in makings] or [{}]
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    return {"method": header["method"], **{key: value for key, value in shared.items() if value is not None}}


def candidates(suite: Suite, files: Mapping[str, Path]) -> list[Candidate]:
    """The two references, then the files by name."""
    return [zero_shot(suite), fine_tuned(suite), *(from_file(path, suite, name) for name, path in files.items())]


def _size(checkpoint: Checkpoint) -> int:
    """Bytes on disk; of one in several files, those of its tensors."""
    path = checkpoint.path
    return path.stat().st_size if path and path.is_file() and not checkpoint.shards else checkpoint.nbytes
