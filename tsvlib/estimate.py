"""What a merge will cost: peak memory from shapes, time from shapes and one small sample of work on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from .parallel import single_threaded_blas
from .singular_vectors import top_singular_triplets

_SAMPLE = (768, 384)
_SAMPLE_RANK = 48
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
        """Of the Gram matrices (short² · long) and the eigensolver (short³), in arbitrary units."""
        short, long = sorted(self.shape)
        return self.tasks * (short**2 * long + 4 * short**3) if self.rank else 0

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


def merge_seconds(matrices: Sequence[MatrixWork], nbytes: int, threads: int) -> float:
    """Seconds of a merge: all singular vectors, and moving the values.

    Args:
        nbytes: read and written.
    """
    effort = sum(matrix.effort for matrix in matrices)
    return (effort * _seconds_per_effort() / threads if effort else 0.0) + nbytes / _BYTES_PER_SECOND


@cache
def _seconds_per_effort() -> float:
    """Measured here, on one core."""
    matrix = torch.randn(_SAMPLE, generator=torch.Generator().manual_seed(0))
    with single_threaded_blas():
        top_singular_triplets(matrix[:64], 8)  # the first call loads libraries
        start = time.perf_counter()
        top_singular_triplets(matrix, _SAMPLE_RANK)
        return (time.perf_counter() - start) / MatrixWork(_SAMPLE, _SAMPLE_RANK, 1).effort
