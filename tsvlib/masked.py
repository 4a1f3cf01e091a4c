"""Fine-tunes stored by masks over deltas: their bytes, and any of them back as a whole model.

Deltas and the multi-task vector count 16 bits a value, masks a bit; nothing is written, as these are only the rivals
that archives are compared with. One parameter is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .checkpoint import Checkpoint
from .compatibility import check_compatible
from .masks import magnitude_mask, tall_masks
from .merging import merged_specs
from .task_vector import TaskVector


@dataclass(frozen=True)
class Masked:
    """All fine-tunes, stored by masks."""

    nbytes: int
    """Of the masks and the values that they apply to; the base is not counted."""
    extract: Callable[[str], Checkpoint]
    """The model of a task, each tensor computed when it is read."""


def tall_masked(base: Checkpoint, tasks: Mapping[str, Checkpoint], threshold: float = 0.4) -> Masked:
    """One multi-task vector, and one bit a value and task (Wang et al. 2024, arXiv 2405.07813).

    Args:
        base: what the tasks were fine-tuned from.
        tasks: name -> fine-tuned checkpoint; same keys and shapes as the base.
        threshold: of :func:`tsvlib.masks.tall_masks`.
    """
    vectors = _vectors(base, tasks)

    def recovered(task: str, key: str) -> Tensor:
        masks, total = tall_masks([vector.delta(key) for vector in vectors.values()], threshold)
        return _half(total) * masks[list(vectors).index(task)]

    bits = sum(math.ceil(count / 8) for count in _counts(base))
    return Masked(2 * sum(_counts(base)) + len(tasks) * bits, _models(base, tasks, recovered))


def magnitude_masked(base: Checkpoint, tasks: Mapping[str, Checkpoint], density: float) -> Masked:
    """Of each parameter the largest values of its delta, and where they stand: a bit a value, or 32 a kept value.

    Args:
        base: what the tasks were fine-tuned from.
        tasks: name -> fine-tuned checkpoint; same keys and shapes as the base.
        density: share of the values that is kept, above 0 and at most 1.
    """
    vectors = _vectors(base, tasks)

    def recovered(task: str, key: str) -> Tensor:
        delta = vectors[task].delta(key)
        return _half(delta * magnitude_mask(delta, density))

    values = len(tasks) * sum(_counts(base))
    nbytes = int(min(values / 8 + 2 * density * values, 6 * density * values))
    return Masked(nbytes, _models(base, tasks, recovered))


def density_within(base: Checkpoint, tasks: Mapping[str, Checkpoint], nbytes: int) -> float:
    """The density at which :func:`magnitude_masked` takes so many bytes; at most 1."""
    values = len(tasks) * sum(_counts(base))
    return min(1.0, max((nbytes - values / 8) / (2 * values), nbytes / (6 * values)))


def _vectors(base: Checkpoint, tasks: Mapping[str, Checkpoint]) -> dict[str, TaskVector]:
    check_compatible(base, tasks)
    return {task: TaskVector(task, base, tuned) for task, tuned in tasks.items()}


def _counts(base: Checkpoint) -> list[int]:
    """Values of each parameter that can have been fine-tuned."""
    return [math.prod(spec.shape) for spec in base.specs.values() if spec.dtype.is_floating_point]


def _models(
    base: Checkpoint, tasks: Mapping[str, Checkpoint], recovered: Callable[[str, str], Tensor]
) -> Callable[[str], Checkpoint]:
    specs = merged_specs(base, tasks)

    def extract(task: str) -> Checkpoint:
        def read(key: str) -> Tensor:
            start = base[key]
            if not start.is_floating_point():
                return start
            delta = recovered(task, key)
            return (start.to(delta.dtype) + delta).to(specs[key].dtype)

        return Checkpoint(specs, read, source=f"{task}, from masks")

    return extract


def _half(values: Tensor) -> Tensor:
    return values.half().to(values.dtype)
