"""Task vectors: what fine-tuning changed, one parameter at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .batched import upload
from .checkpoint import Checkpoint
from .errors import NumericalError
from .key_policy import KeyPolicy
from .tensors import tensor_bytes


@dataclass(frozen=True)
class TaskVector:
    """A base and one fine-tune of it; gives the delta of one parameter at a time, keeping none."""

    task: str
    base: Checkpoint
    fine_tuned: Checkpoint

    def delta(self, name: str) -> Tensor:
        """Fine-tuned minus base (Ilharco et al. 2023), in float32 (float64 if either is float64).

        Raises:
            NumericalError: the delta holds NaN or Inf; names the file, the key and the task.
        """
        base, fine_tuned = self.base[name], self.fine_tuned[name]
        dtype = computing_dtype(base.dtype, fine_tuned.dtype)
        delta = fine_tuned.to(dtype) - base.to(dtype)
        check_finite(delta, f"{self.fine_tuned.source}: key {name!r} of task {self.task!r}")
        return delta

    def content(self, name: str) -> str:
        """What stands for the delta of one parameter in keys: digests, dtypes and shape of the two tensors."""
        sides = [f"{one.specs[name].dtype} {one.tensor_digest(name)}" for one in (self.base, self.fine_tuned)]
        return f"{list(self.base.specs[name].shape)}: {sides[1]} - {sides[0]}"

    def matrices(self, name: str, key_policy: KeyPolicy) -> list[TaskMatrix]:
        """The task matrices of one parameter, not yet read; none where it is not treated as a matrix."""
        count = key_policy.count(name, self.base.specs[name].shape)
        # a tensor without data stands in for the parameter, to learn the shapes without reading
        stand_in = torch.empty(self.base.specs[name].shape, device="meta")
        return [
            TaskMatrix(
                name if count == 1 else f"{name}[{index}]",
                self.task,
                (part.shape[0], part.shape[1]),
                lambda index=index: key_policy.split(name, self.delta(name))[index],  # type: ignore[misc]
                lambda index=index: f"{self.content(name)}, matrix {index} of {count}",  # type: ignore[misc]
            )
            for index, part in enumerate(key_policy.split(name, stand_in))
        ]


@dataclass(frozen=True)
class TaskMatrix:
    """One matrix of one task, not yet read."""

    key: str
    """The parameter's name, with ``[i]`` behind it where the parameter holds several matrices."""
    task: str
    shape: tuple[int, int]
    load: Callable[[], Tensor]
    """Reads it: (m, n), finite."""
    content: Callable[[], str]
    """What stands for its values in keys of cached results: equal for equal matrices of equal origin."""

    @classmethod
    def of(cls, delta: Tensor, task: str, key: str = "matrix") -> TaskMatrix:
        """Of a tensor in memory, which is checked here."""
        check_finite(delta, f"{key}: task {task!r}")
        return cls(key, task, (delta.shape[0], delta.shape[1]), partial(_identity, delta), partial(_content, delta))


class TaskMatrices(Sequence[Tensor]):
    """The matrices of all tasks for one parameter, each read when it is asked for and not kept."""

    def __init__(self, matrices: Sequence[TaskMatrix], device: torch.device | None = None) -> None:
        self.matrices = list(matrices)
        self.device = device

    def __len__(self) -> int:
        return len(self.matrices)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        delta = self.matrices[index].load()
        return delta if self.device is None else upload(delta, self.device)


def computing_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 if any of them is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def check_finite(delta: Tensor, where: str) -> None:
    """Raise a NumericalError naming ``where`` if the delta holds NaN or Inf."""
    flat = delta.reshape(-1)
    if flat.numel() == 0 or torch.isfinite(torch.dot(flat, flat)):  # one fast pass; it may overflow, hence a second
        return
    bad = int((~torch.isfinite(flat)).sum())
    if bad:
        raise NumericalError(
            f"{where}: {bad:,} of {flat.numel():,} values of the delta are NaN or Inf. "
            "The fine-tune or its base is damaged; fetch or train it again."
        )


def is_zero(delta: Tensor) -> bool:
    """Whether every entry is exactly zero, as in a tower that was frozen."""
    flat = delta.reshape(-1)
    return not torch.dot(flat, flat) and not flat.any()  # the dot product is fast, but may underflow


def _identity(delta: Tensor) -> Tensor:
    return delta


def _content(delta: Tensor) -> str:
    return f"{delta.dtype} {tuple(delta.shape)} {hashlib.sha256(tensor_bytes(delta)).hexdigest()}"
