"""Reading archives: any task as a whole model, a parameter at a time, or into a live model in place."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import ArchiveError, CheckpointError, MismatchError, did_you_mean
from ..factors import Factors
from ..formats.archive import BASE, Index, described, read_index, read_segment, read_task
from ..key_policy import KeyPolicy
from ..sources import scheme_of
from .base_table import BaseTable, CheckedBase
from .coding import add_factors, decode_dense, decode_factors
from .segment import TaskReader


class Archive:
    """An archive opened for reading, through a memory map; touches only the task that is asked for.

    Args:
        file: the file, by its path or as a checkpoint.

    Raises:
        ArchiveError: it is no archive, of an unknown layout, damaged, or truncated.
    """

    def __init__(self, file: str | Path | Checkpoint) -> None:
        self.path = Path(file.path or file.source if isinstance(file, Checkpoint) else file)
        if not self.path.is_file():
            raise ArchiveError(f"{self.path}: no such file. Make one with 'tsv compress'.")
        with self.path.open("rb") as opened:
            self._index: Index = read_index(opened, str(self.path))
            self._mapped = mmap.mmap(opened.fileno(), self._index.end, access=mmap.ACCESS_COPY)
        self._reading = threading.Lock()  # the map has one position
        self._tasks: dict[str, TaskReader] = {}
        self._base: CheckedBase | None = None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that it holds, sorted."""
        return self._index.tasks

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return self._index.end

    def task_nbytes(self, task: str) -> int:
        """Of all that one task takes in the file."""
        self.task(task)
        return self._index.segments[f"task/{task}"].nbytes

    @cached_property
    def file(self) -> Checkpoint:
        """The stored tensors of all tasks, as a checkpoint whose names are ``task/tensor``."""
        return open_checkpoint(self.path)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """What the file says of itself; reads the headers of all tasks."""
        return described(self._index, {task: self.task(task).metadata for task in self.tasks})

    @cached_property
    def base_table(self) -> BaseTable:
        """What it knows of its base."""
        recorded = self._index.metadata["base"]["table"]
        with self._reading:
            found = read_segment(
                self._mapped, self._index.segments[BASE], recorded, f"{self.path}: the table of the base"
            )
        return BaseTable.from_metadata(found.metadata)

    def task(self, task: str) -> TaskReader:
        """The stored entries of one task.

        Raises:
            ArchiveError: there is no such task, or its header is damaged.
        """
        if task not in self._index.tasks:
            raise ArchiveError(f"{self.path}: no task {task!r}.{did_you_mean(task, self.tasks)}")
        with self._reading:
            if task not in self._tasks:
                contents = read_task(self._mapped, self._index, task, str(self.path))
                self._tasks[task] = TaskReader(self._mapped, contents.tensors, contents.metadata, str(self.path), task)
            return self._tasks[task]

    def checked_base(self, base: Checkpoint) -> CheckedBase:
        """A base that is known to be the one that the archive was made from, as far as it has been read.

        Raises:
            ArchiveError: it is another one.
        """
        if self._base is None or self._base.checkpoint is not base:
            self._base = CheckedBase(base, self.base_table, str(self.path))
        return self._base

    def extract(self, task: str, base: Checkpoint) -> Checkpoint:
        """The model of one task: base + reconstructed delta, each tensor computed when it is read.

        Raises:
            ArchiveError: no such task, or another base than the archive was made from; where only the values of a
                large tensor differ, when that is read.
        """
        self.task(task)
        checked = self.checked_base(base)

        def read(name: str) -> Tensor:
            values = torch.empty_like(checked[name])
            self.parameter_into(values, task, name, checked)
            return values

        source = f"{self.path}: task {task!r}"
        return Checkpoint(base.specs, read, {"kind": "extracted", "task": task}, source=source)

    def load_into(self, parameters: Mapping[str, Tensor], task: str, base: Checkpoint) -> None:
        """Turn a live model into that of a task, in place: no second copy, and nothing of an earlier task stays.

        Args:
            parameters: name -> tensor of the model, such as its state dict; all of the base's names and shapes.

        Raises:
            ArchiveError: as :meth:`extract`.
            MismatchError: a parameter is missing, unknown, or of another shape.
        """
        self.task(task)
        checked = self.checked_base(base)
        problems = [f"key {name!r} is missing." for name in sorted(base.specs.keys() - parameters.keys())]
        problems += [
            f"key {name!r} is not in the base {base.source}." for name in sorted(parameters.keys() - base.specs)
        ]
        problems += [
            f"key {name!r} has shape {tuple(tensor.shape)}, the base {base.source} has {base.specs[name].shape}."
            for name, tensor in parameters.items()
            if name in base.specs and tuple(tensor.shape) != base.specs[name].shape
        ]
        if problems:
            raise MismatchError([f"the model: {problem}" for problem in problems])
        with torch.no_grad():
            for name, tensor in parameters.items():
                self.parameter_into(tensor, task, name, checked)

    def parameter_into(self, target: Tensor, task: str, name: str, base: Mapping[str, Tensor]) -> None:
        """Overwrite a tensor with one parameter of a task's model."""
        start = base[name]
        if target.dtype == torch.float32 and target.is_contiguous():
            target.copy_(start)
            self._add_delta(target, task, name)
        elif (delta := self.delta(task, name)) is None:
            target.copy_(start)
        else:
            target.copy_(delta.add_(start.to(delta.dtype)))

    def delta(self, task: str, name: str) -> Tensor | None:
        """The reconstructed delta of one parameter, float32; None where it is zero."""
        delta = torch.zeros(self.base_table.specs[name].shape)
        return delta if self._add_delta(delta, task, name) else None

    def key_policy(self, task: str) -> KeyPolicy:
        """Which parameters of a task were taken for matrices."""
        return KeyPolicy.model_validate(self.task(task).metadata["key_policy"])

    def factors(self, task: str, name: str) -> list[Factors | None]:
        """The factors of each matrix of a parameter; None for one that is zero or stored densely."""
        keys = [key for key, _ in self._matrices(task, name, self.base_table.specs[name].shape)]
        return [self.stored_factors(task, key) for key in keys]

    def stored_factors(self, task: str, key: str) -> Factors | None:
        """The factors of one matrix, by its key; None where it is zero or stored densely."""
        reader = self.task(task)
        if key not in reader.entries or not reader.entries[key].rank:
            return None
        entry, codes, scales = reader.parts(key)
        return decode_factors(entry.rank, codes, scales)

    def error_bound(self, task: str, name: str) -> float:
        """Bound on the Frobenius norm of what the delta of one parameter lost: truncation plus quantisation.

        What is stored is compared with the fine-tune minus the base in float32; adding it to the base rounds once more,
        to the base's own dtype.
        """
        entries = self.task(task).entries
        keys = [key for key, _ in self._matrices(task, name, self.base_table.specs[name].shape)]
        return sum(entries[key].error ** 2 for key in keys if key in entries) ** 0.5

    def verify(self) -> Iterator[tuple[str, str, int]]:
        """Read every entry of every task and check it; (task, key, its bytes) of each.

        Raises:
            ArchiveError: at the first that is damaged, naming it.
        """
        self.base_table  # noqa: B018
        for task in self.tasks:
            reader = self.task(task)
            for key in reader.entries:
                reader.parts(key)
                yield task, key, reader.entry_nbytes(key)

    def _add_delta(self, target: Tensor, task: str, name: str) -> bool:
        """Add a delta to a contiguous float32 tensor; False where it is zero."""
        reader, added = self.task(task), False
        for key, part in self._matrices(task, name, target):
            if key not in reader.entries:
                continue
            entry, codes, scales = reader.parts(key)
            if entry.rank:
                add_factors(part, entry.rank, codes, scales)
            else:
                part.add_(decode_dense(codes[0], scales).reshape(part.shape))
            added = True
        return added

    def _matrices(self, task: str, name: str, whole: Any) -> list[tuple[str, Any]]:
        """The keys of a parameter's entries, each with its view of the whole."""
        policy = self.key_policy(task)
        if not isinstance(whole, Tensor):
            whole = torch.empty(whole, device="meta")
        parts = policy.split(name, whole)
        if len(parts) < 2:
            return [(name, parts[0] if parts else whole)]
        return [(f"{name}[{i}]", part) for i, part in enumerate(parts)]


def open_archive(uri: str | Path) -> Archive:
    """Open an archive; one that lies elsewhere is fetched into the store first.

    Args:
        uri: a path or URI.

    Raises:
        ArchiveError: it is missing, no archive, of an unknown layout, damaged, or truncated.
        CheckpointError: it lies elsewhere and cannot be had.
    """
    if scheme_of(uri) == "file":
        return Archive(str(uri).removeprefix("file://"))
    path = open_checkpoint(uri).path
    if path is None:
        raise CheckpointError(f"{uri}: is not a single file, so no archive.")
    return Archive(path)
