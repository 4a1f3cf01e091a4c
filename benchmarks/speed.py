"""CPU time and error of every variant, matrix by matrix, in one process and on one thread."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tsvlib.errors import TSVWarning
from tsvlib.factors import factorise
from tsvlib.merging import merge_matrix
from tsvlib.methods import get_method
from tsvlib.parallel import single_threaded_blas
from tsvlib.task_vector import TaskMatrix

from . import authors
from .towers import TOWERS, task_deltas

AUTHORS = "the paper's algorithm"
VARIANTS = (AUTHORS, "exact", "fast", "exact, from cached factors")


@dataclass
class Measurement:
    """What one variant took and how far it was from float64, over all matrices measured."""

    model: str
    tasks: int
    blocks: int
    variant: str
    cpu_seconds: float = 0.0
    errors: list[float] = field(default_factory=list)


def measure(model: str, tasks: int, blocks: int, repeats: int, say: Callable[[str], None]) -> list[Measurement]:
    """All variants alternate on each matrix; the least time of ``repeats`` counts, for each.

    Args:
        model: a name of ``TOWERS``.
        tasks: T.
        blocks: how many of the tower's blocks; errors are measured on the first one only.
        repeats: of the library's variants (the paper's algorithm runs once).
        say: told of each matrix when it is done.
    """
    totals = {variant: Measurement(model, tasks, blocks, variant) for variant in VARIANTS}
    for seed, (name, shape) in enumerate(TOWERS[model].shapes(blocks).items()):
        deltas = task_deltas(shape, tasks, seed)
        expected = authors.merge([delta.double() for delta in deltas]) if not name.startswith(_LATER) else None
        for variant, work in _variants(deltas).items():
            merged, seconds = _least_cpu_seconds(work, 1 if variant == AUTHORS else repeats)
            totals[variant].cpu_seconds += seconds
            if expected is not None:
                totals[variant].errors.append(float((merged.double() - expected).norm() / expected.norm()))
        say(f"{model}, {tasks} tasks: {name}")
    return list(totals.values())


_LATER = tuple(f"{block}." for block in range(1, 100))


def _variants(deltas: list[Tensor]) -> dict[str, Callable[[], Tensor]]:
    method = get_method("tsv-m")
    parameters = method.parse({})
    k = method.rank((deltas[0].shape[0], deltas[0].shape[1]), len(deltas), parameters) if method.rank else 0
    factors = [factorise(TaskMatrix.of(delta, str(task)), k) for task, delta in enumerate(deltas)]
    work: tuple[Callable[[], Tensor], ...] = (
        lambda: authors.merge(deltas),
        lambda: merge_matrix(deltas),
        lambda: merge_matrix(deltas, mode="fast"),
        lambda: method.function(factors, parameters),
    )
    return dict(zip(VARIANTS, work, strict=True))


def _least_cpu_seconds(work: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    least, merged = float("inf"), torch.empty(0)
    with single_threaded_blas(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TSVWarning)
        for _ in range(repeats):
            start = time.process_time()
            merged = work()
            least = min(least, time.process_time() - start)
    return merged, least
