"""A plan of a merge: what will be done to each tensor, what must be fetched, what it costs, and all that is wrong.

Only headers are read of checkpoints that lie elsewhere; the values of those at hand are compared as well.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .checkpoint import Checkpoint, open_location
from .compatibility import (
    Changes,
    change_notes,
    change_problems,
    description_problems,
    find_changes,
    identical_problems,
    structure_problems,
)
from .downloads import Downloads
from .errors import CheckpointError
from .estimate import MatrixWork, merge_seconds, peak_bytes
from .key_policy import KeyPolicy
from .merging import merged_specs
from .methods import get_method
from .progress import Progress
from .sources import DESCRIPTIONS, File, locate
from .tensors import FloatDtype

Treatment = Literal["svd", "delta", "mean", "skip-zero", "passthrough"]
"""svd: by singular vectors; delta: by the method, from whole matrices; mean: by the method's rule for what is no
matrix; skip-zero: no fine-tune changed it; passthrough: the base's, being of integers."""


@dataclass(frozen=True)
class PlannedTensor:
    """What a merge does with one parameter."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    treatment: Treatment
    matrices: int
    """As how many matrices it is treated; 0 if as none."""


@dataclass(frozen=True)
class PlannedFile:
    """A file that the merge reads."""

    uri: str
    nbytes: int | None
    here: bool
    """Whether it is on this machine already."""


@dataclass(frozen=True)
class Plan:
    """What a merge will do and cost, and what stands against it."""

    method: str
    tensors: list[PlannedTensor]
    files: list[PlannedFile]
    changes: dict[str, float]
    """Task -> norm of its delta over the norm of the base; of the tasks whose values are at hand."""
    problems: list[str]
    notes: list[str]
    out_bytes: int
    peak_memory_bytes: int
    """Estimated; beyond the interpreter and its libraries."""
    seconds: float
    """Estimated; without fetching."""

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes of the files that are not here yet, as far as their sources tell."""
        return sum(file.nbytes or 0 for file in self.files if not file.here)

    def counts(self) -> dict[str, int]:
        """Treatment -> number of tensors."""
        treatments = [tensor.treatment for tensor in self.tensors]
        return {treatment: treatments.count(treatment) for treatment in dict.fromkeys(treatments)}

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self) | {"bytes_to_fetch": self.bytes_to_fetch, "counts": self.counts()}


def plan(
    base: str | Path,
    tasks: Mapping[str, str | Path],
    method: str = "tsv-m",
    *,
    dtype: FloatDtype | None = None,
    key_policy: KeyPolicy | None = None,
    values: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    **parameters: Any,
) -> Plan:
    """Plan a merge, fetching no weights.

    Args:
        base: path or URI of what the tasks were fine-tuned from.
        tasks: name -> path or URI of the fine-tune.
        method: a name of :func:`tsvlib.methods.method_names`.
        dtype: of the result, as :func:`tsvlib.merging.merge` takes it.
        key_policy: which parameters count as matrices; the paper's by default.
        values: also compare the values of checkpoints that are at hand; reads each once.
        threads: parameters merged at a time; by default one per available core.
        progress: called with (what was compared, number done, number of all).
        parameters: of the method.

    Raises:
        MethodError: unknown method, or a parameter it does not take. What is wrong with checkpoints is in the plan.
    """
    chosen = get_method(method)
    parsed = chosen.parse(parameters)
    key_policy, threads = key_policy or KeyPolicy(), threads or len(os.sched_getaffinity(0))
    survey = _Survey()
    found = {"": survey.open(base, ""), **{task: survey.open(uri, task) for task, uri in tasks.items()}}
    whole = found.pop("")
    opened = {task: one for task, one in found.items() if one is not None}
    changes: dict[str, Changes] = {}
    fitting: dict[str, _Found] = {}
    if whole is not None:
        fitting = _check(whole, opened, survey)
        if values:
            changes = _compare(whole, fitting, survey, progress)
    tensors = _tensors(whole.checkpoint, key_policy, chosen.rank is not None, changes, len(tasks)) if whole else []
    matrices = [
        MatrixWork(shape, chosen.rank(shape, len(tasks), parsed) if chosen.rank else 0, len(tasks))
        for tensor in tensors
        for shape in _matrix_shapes(tensor)
    ]
    specs = (
        merged_specs(whole.checkpoint, {task: one.checkpoint for task, one in fitting.items()}, dtype) if whole else {}
    )
    out_bytes = sum(spec.nbytes for spec in specs.values())
    largest = max((4 * math.prod(tensor.shape) for tensor in tensors), default=0)
    return Plan(
        method=method,
        tensors=tensors,
        files=survey.files,
        changes={task: found.relative for task, found in changes.items()},
        problems=survey.problems,
        notes=survey.notes,
        out_bytes=out_bytes,
        peak_memory_bytes=peak_bytes(matrices, largest, threads, method, **parameters),
        seconds=merge_seconds(matrices, (2 * len(tasks) + 3) * out_bytes, threads, method, **parameters),
    )


@dataclass(frozen=True)
class _Found:
    """A checkpoint whose header was read."""

    checkpoint: Checkpoint
    files: list[File]

    @property
    def here(self) -> bool:
        return all(file.path is not None for file in self.files)

    @property
    def digest(self) -> str | None:
        """Of the content; None where it is elsewhere and its source does not tell."""
        if self.here:
            return self.checkpoint.digest
        digests = [file.sha256 for file in self.files]
        return ",".join(filter(None, digests)) if all(digests) else None


@dataclass
class _Survey:
    """What is found on the way."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: list[PlannedFile] = field(default_factory=list)
    downloads: Downloads = field(default_factory=Downloads)

    def open(self, uri: str | Path, task: str) -> _Found | None:
        """Read the header of a checkpoint; None, and a problem more, if that cannot be done."""
        files: list[File] = []
        try:
            location = locate(uri)

            def find(name: str) -> File:
                file = self.downloads.find(location.file(name))
                if name not in DESCRIPTIONS:
                    files.append(file)
                return file

            checkpoint = open_location(replace(location, file=find))
        except CheckpointError as error:
            self.problems += [f"{line} (task {task!r})" if task else line for line in str(error).splitlines()]
            return None
        self.files += [PlannedFile(file.uri, file.size, file.path is not None) for file in files]
        return _Found(checkpoint, files)


def _check(base: _Found, tasks: Mapping[str, _Found], survey: _Survey) -> dict[str, _Found]:
    """The tasks whose structure fits the base; what is wrong with the others goes to the survey."""
    fitting = {}
    for task, found in tasks.items():
        wrong = structure_problems(base.checkpoint, task, found.checkpoint)
        survey.problems += wrong
        survey.problems += description_problems(base.checkpoint, task, found.checkpoint)
        if not wrong:
            fitting[task] = found
    return fitting


def _compare(
    base: _Found, tasks: Mapping[str, _Found], survey: _Survey, progress: Progress | None
) -> dict[str, Changes]:
    """Compare values, of those that are here."""
    here = {task: found for task, found in tasks.items() if base.here and found.here}
    if elsewhere := sorted(tasks.keys() - here.keys()):
        survey.notes.append(
            f"not compared with the base until they are fetched: {', '.join(elsewhere)} (run 'tsv fetch' first)."
        )
    checkpoints = {task: found.checkpoint for task, found in tasks.items()}
    digests = {task: digest for task, found in tasks.items() if (digest := found.digest)}
    survey.problems += identical_problems(digests, checkpoints)
    changes = {}
    for done, (task, found) in enumerate(here.items(), 1):
        changes[task] = find_changes(base.checkpoint, found.checkpoint)
        survey.problems += change_problems(base.checkpoint, task, found.checkpoint, changes[task])
        survey.notes += change_notes(task, found.checkpoint, changes[task])
        if progress:
            progress(task, done, len(here))
    return changes


def _tensors(
    base: Checkpoint, key_policy: KeyPolicy, by_factors: bool, changes: Mapping[str, Changes], tasks: int
) -> list[PlannedTensor]:
    unchanged = set(base)
    for change in changes.values():
        unchanged &= change.unchanged
    if len(changes) < tasks:
        unchanged = set()
    planned = []
    for name, spec in base.specs.items():
        count = key_policy.count(name, spec.shape)
        treatment: Treatment = "mean"
        if not spec.dtype.is_floating_point:
            treatment = "passthrough"
        elif name in unchanged:
            treatment = "skip-zero"
        elif count:
            treatment = "svd" if by_factors else "delta"
        planned.append(PlannedTensor(name, spec.shape, str(spec.dtype).removeprefix("torch."), treatment, count))
    return planned


def _matrix_shapes(tensor: PlannedTensor) -> Sequence[tuple[int, int]]:
    if tensor.treatment not in ("svd", "delta"):
        return []
    rows, *rest = tensor.shape
    return [(rows // tensor.matrices, math.prod(rest))] * tensor.matrices
