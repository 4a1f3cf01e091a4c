"""What a merge will cost: peak memory from shapes, time from shapes and small samples of the method's work here."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls

from .errors import TSVWarning
from .merging import merge_matrix
from .parallel import single_threaded_blas

_SAMPLES = ((256, 128), (1024, 512), (512, 1024))
_SAMPLE_TASKS = 4  # at most; the cost of more is taken to grow with their number
_REPETITIONS = 2
_BYTES_PER_SECOND = 1e9  # of a solid-state disk, with hashing; a slower disk makes the estimate too low


@dataclass(frozen=True)
class MatrixWork:
    """The work on one matrix of all tasks."""

    shape: tuple[int, int]
    rank: int
    """Triplets taken of each task; 0 for a method that works on the deltas themselves."""
    tasks: int

    @property
    def effort(self) -> float:
        """Of Gram matrices (short² · long) and eigensolvers (short³), in arbitrary units."""
        short, long = sorted(self.shape)
        return self.tasks * (short**2 * long + 4 * short**3)

    @property
    def nbytes(self) -> int:
        """Bytes held while it is merged, at most."""
        short, long = sorted(self.shape)
        kept = self.tasks * self.rank
        gram, factors, deltas = 3 * 8 * short**2, 3 * 4 * kept * (short + long), 4 * 4 * short * long
        return gram + factors + deltas if self.rank else deltas


def peak_bytes(matrices: Sequence[MatrixWork], largest: int, threads: int) -> int:
    """Bytes that a merge holds at most, beyond the interpreter and its libraries.

    Args:
        matrices: all of the model.
        largest: bytes of its largest parameter in float32.
        threads: parameters merged at a time.
    """
    of_one = max((matrix.nbytes for matrix in matrices), default=0)
    waiting = 2 * threads + 1  # merged parameters that may wait to be written
    return threads * max(of_one, 4 * largest) + waiting * largest


def merge_seconds(
    matrices: Sequence[MatrixWork], nbytes: int, threads: int, method: str = "tsv-m", **parameters: Any
) -> float:
    """Seconds of a merge: what the method does to all matrices, and moving the values.

    Args:
        nbytes: read, hashed and written.
        method: a name of :func:`tsvlib.methods.method_names`.
        parameters: of the method.
    """
    moving = nbytes / _BYTES_PER_SECOND
    if not matrices:
        return moving
    costs = _method_costs(min(matrices[0].tasks, _SAMPLE_TASKS), method, tuple(sorted(parameters.items())))
    return moving + float(sum(np.dot(_units(matrix), costs) for matrix in matrices)) / threads


def _units(matrix: MatrixWork) -> tuple[float, ...]:
    """What the time of a method may grow with: values; singular vectors; a square matrix as wide as this one."""
    rows, columns = matrix.shape
    return matrix.tasks * rows * columns, matrix.effort, columns**3


@cache
def _method_costs(tasks: int, method: str, parameters: tuple[tuple[str, Any], ...]) -> npt.NDArray[np.float64]:
    """Seconds per unit of :func:`_units`, from merging small random matrices of three shapes on one core here."""
    works = [MatrixWork(shape, 1, tasks) for shape in _SAMPLES]
    seconds = [_sample_seconds(work, method, dict(parameters)) for work in works]
    units = np.array([_units(work) for work in works])
    costs, _ = nnls(units / np.array(seconds)[:, None], np.ones(len(works)))  # equal weight to each ratio
    return costs


def _sample_seconds(work: MatrixWork, method: str, parameters: Mapping[str, Any]) -> float:
    random = torch.Generator().manual_seed(0)
    deltas = [torch.randn(work.shape, generator=random) for _ in range(work.tasks)]
    taken = []
    with single_threaded_blas(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TSVWarning)  # random matrices are nobody's concern
        for _ in range(_REPETITIONS):
            start = time.perf_counter()
            merge_matrix(deltas, method, **parameters)
            taken.append(time.perf_counter() - start)
    return min(taken)  # the first call loads libraries; others may be held up by other programs
