"""What a merge will cost: memory and time, from shapes and from small samples of the method's work here."""

from __future__ import annotations

import time
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import TSVWarning
from .merging import merge_matrix
from .methods import get_method
from .parallel import single_threaded_blas

_SAMPLES = ((384, 192), (1024, 512), (512, 1024))
_SAMPLE_TASKS = 4  # at most; the cost of more is taken to grow with their number
_REPETITIONS = 3
_EXPLAINED = 0.15  # relative error of the seconds of each sample
_SHORT_SIDE = 64  # of the matrices on which memory is sampled; more than that grows with the square of the size
_BESIDE_RESULTS = 3  # times what tensors hold: for copies inside an operation
_KEPT_AT_LEAST = 64 * 2**20
_MAPPED_FROM = 32 * 2**20  # bytes; glibc gives blocks of this size or more back at once
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
    def factor_bytes(self) -> int:
        """Bytes held while it is merged by factors, at most: Gram matrices, factors of all tasks, and deltas."""
        short, long = sorted(self.shape)
        kept = self.tasks * self.rank
        return 3 * 8 * short**2 + 3 * 4 * kept * (short + long) + 4 * 4 * short * long


def peak_bytes(
    matrices: Sequence[MatrixWork], largest: int, threads: int, method: str = "tsv-m", **parameters: Any
) -> int:
    """Bytes that a merge holds at most, beyond the interpreter and its libraries.

    Args:
        matrices: all of the model.
        largest: bytes of its largest parameter in float32.
        threads: parameters merged at a time.
        method: a name of :func:`tsvlib.methods.method_names`.
        parameters: of the method.
    """
    given = tuple(sorted(parameters.items()))
    of_one = max((_bytes_held(matrix, method, given) for matrix in set(matrices)), default=0)
    waiting = 2 * threads + 1  # merged parameters that may wait to be written
    kept = _KEPT_AT_LEAST + 4 * threads * min(largest, _MAPPED_FROM)  # freed, but not given back
    return kept + threads * max(of_one, 4 * largest) + waiting * largest


def _bytes_held(matrix: MatrixWork, method: str, parameters: tuple[tuple[str, Any], ...]) -> int:
    if matrix.rank:
        return matrix.factor_bytes
    rows, columns = matrix.shape
    scale = max(1.0, min(rows, columns) / _SHORT_SIDE)
    small = MatrixWork((round(rows / scale), round(columns / scale)), 0, matrix.tasks)
    return round(_BESIDE_RESULTS * scale**2 * _sample_bytes(small, method, parameters))


@cache
def _sample_bytes(work: MatrixWork, method: str, parameters: tuple[tuple[str, Any], ...]) -> int:
    """Bytes of all tensors that exist at a time while random matrices are merged."""
    deltas = _random_deltas(work)
    with _TensorBytes() as held:
        _merge_quietly(deltas, method, dict(parameters))
    return held.peak


class _TensorBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, from when they are made until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._references: Counter[int] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._made(tensor, tensor.untyped_storage())
        return results

    def _made(self, tensor: Tensor, storage: torch.UntypedStorage) -> None:
        address, nbytes = storage.data_ptr(), storage.nbytes()
        self._now += 0 if self._references[address] else nbytes
        self._references[address] += 1
        self.peak = max(self.peak, self._now)
        weakref.finalize(tensor, self._gone, address, nbytes)

    def _gone(self, address: int, nbytes: int) -> None:
        self._references[address] -= 1
        self._now -= 0 if self._references[address] else nbytes


def merge_seconds(
    matrices: Sequence[MatrixWork], nbytes: int, threads: int, method: str = "tsv-m", **parameters: Any
) -> float:
    """Seconds of a merge on cores of its own: what the method does to all matrices, and moving the values.

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
    seconds = np.array([_sample_seconds(work, method, dict(parameters)) for work in works])
    units = np.array([_units(work) for work in works]) / seconds[:, None]
    costs = np.zeros(units.shape[1])
    fewest = 2 if get_method(method).rank else 1  # cubes only where there must be some: a large matrix cubes noise too
    for count in range(fewest, units.shape[1] + 1):
        costs[:count], _ = nnls(units[:, :count], np.ones(len(works)))
        if np.abs(units @ costs - 1).max() < _EXPLAINED:
            break
    return costs


def _sample_seconds(work: MatrixWork, method: str, parameters: Mapping[str, Any]) -> float:
    deltas, taken = _random_deltas(work), []
    with single_threaded_blas():
        for _ in range(_REPETITIONS):
            start = time.thread_time()
            _merge_quietly(deltas, method, parameters)
            taken.append(time.thread_time() - start)
    return min(taken)  # the first call loads libraries


def _random_deltas(work: MatrixWork) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(work.shape, generator=random) for _ in range(work.tasks)]


def _merge_quietly(deltas: list[Tensor], method: str, parameters: Mapping[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TSVWarning)  # random matrices are nobody's concern
        merge_matrix(deltas, method, **parameters)
