"""Factors: the top-k singular triplets of one task matrix, which is all that some methods need of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .batched import upload
from .errors import MethodError
from .notices import warn
from .singular_vectors import Mode, find_triplets, find_triplets_batched
from .task_vector import TaskMatrix, is_zero

TIE = 1e-6  # a smaller gap at the cut, relative to the largest singular value, is reported


@dataclass(frozen=True)
class Factors:
    """U (m, k), S (k), Vh (k, n) of one task matrix; U · diag(S) · Vh is its best approximation of rank k."""

    U: Tensor
    S: Tensor
    Vh: Tensor
    gap: float = float("inf")
    """(s_k - s_{k+1}) / s_1; near 0 the dominant subspace is not well defined."""
    mode: Mode = "exact"
    key: str = "matrix"
    task: str = "task"
    squared_norm: float = math.nan
    """Of the whole task matrix; NaN where nobody took it."""

    @property
    def energy(self) -> float:
        """Share of the matrix's squared norm that the triplets hold; 1 of a zero matrix."""
        kept = float(self.S.double().square().sum())
        return min(1.0, kept / self.squared_norm) if self.squared_norm else 1.0

    @property
    def rank(self) -> int:
        """k, the number of triplets held."""
        return len(self.S)

    @property
    def is_zero(self) -> bool:
        return not bool(self.S.any())

    def matrix(self) -> Tensor:
        """U · diag(S) · Vh, shape (m, n)."""
        return (self.U * self.S) @ self.Vh

    def truncated(self, k: int) -> Factors:
        """The first k triplets; the gap is then the one at the new cut."""
        if k >= self.rank:
            return self
        gap = float((self.S[k - 1] - self.S[k]) / self.S[0]) if self.S[0] > 0 else float("inf")
        return replace(self, U=self.U[:, :k], S=self.S[:k], Vh=self.Vh[:k], gap=gap)


def kept_rank(shape: Sequence[int], tasks: int, rank_fraction: float | None = None) -> int:
    """k = min(m, n) // T (Gargiulo et al. 2025, Sec. 4), or the given share of min(m, n), but at least 1."""
    full = min(shape)
    return max(1, full // tasks if rank_fraction is None else int(full * rank_fraction))


def canonical_rank(k: int, shape: Sequence[int], mode: Mode = "exact") -> int:
    """The rank at which factors are computed where k are asked for: the next of min(m, n) · {1, 1/√2, 1/2, …}.

    A solver gives other bits for another rank (docs/cache.md has the figures). With few canonical ranks, factors that
    are kept serve other ranks too, as 8 to 11 tasks share 1/8, and results still do not depend on what was kept.
    ``fast`` estimates its error at the rank asked for, and so computes no other.
    """
    full = min(shape)
    if mode == "fast" or not 1 <= k <= full:
        return k
    ranks = (math.ceil(full / 2 ** (i / 2)) for i in range(2 * full.bit_length() + 1))
    return min(rank for rank in ranks if rank >= k)


FactorSource = Callable[[TaskMatrix, int, Mode], Factors]
"""Where a merge gets the factors of rank k of a task matrix: :func:`factorise`, or a cache in front of it."""


def factorise(matrix: TaskMatrix, k: int, mode: Mode = "exact") -> Factors:
    """The top-k factors of one task matrix, computed at the canonical rank.

    Raises:
        NumericalError: the matrix holds NaN or Inf; names key and task.
        MethodError: k is not between 1 and min(m, n).
    """
    delta = matrix.load()
    if is_zero(delta):
        m, n = delta.shape
        zeros = (torch.zeros(m, k), torch.zeros(k), torch.zeros(k, n))
        return Factors(*zeros, mode=mode, key=matrix.key, task=matrix.task, squared_norm=0.0)
    if not 1 <= k <= min(delta.shape):
        raise MethodError(f"k = {k}: must lie between 1 and {min(delta.shape)} for shape {tuple(delta.shape)}.")
    found = find_triplets(delta, canonical_rank(k, delta.shape, mode), mode)
    squared_norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
    whole = Factors(found.U, found.S, found.Vh, found.gap, found.mode, matrix.key, matrix.task, squared_norm)
    return whole.truncated(k)


def factorise_batch(matrices: list[TaskMatrix], k: int, device: torch.device) -> list[Factors]:
    """The exact top-k factors of the task matrices of one parameter, computed at once on a device, and kept there."""
    found = find_triplets_batched(torch.stack([upload(matrix.load(), device) for matrix in matrices]), k)
    return [
        Factors(one.U, one.S, one.Vh, one.gap, one.mode, matrix.key, matrix.task)
        for one, matrix in zip(found, matrices, strict=True)
    ]


def gathered(found: Iterable[Factors], count: int) -> list[Factors]:
    """The factors of ``count`` tasks, all of one rank, moved into one block of memory as they come.

    Left where they were made, small results between large temporaries leave holes in the heap, which would then grow
    with the number of tasks.
    """
    held: list[Factors] = []
    for one in found:
        if not held:
            U, S, Vh = (part.new_empty(count, *part.shape) for part in (one.U.T, one.S, one.Vh))
        task = len(held)
        U[task], S[task], Vh[task] = one.U.T, one.S, one.Vh
        held.append(replace(one, U=U[task].T, S=S[task], Vh=Vh[task]))
    return held


def concatenated(factors: list[Factors]) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, Σk), S (Σk), Vh (Σk, n) of all tasks, without triplets that do not exist (Gargiulo et al. 2025, Eq. 5)."""
    ranks = [one.rank if one.mode == "reference" else int((one.S > 0).sum()) for one in factors]
    U = torch.cat([one.U[:, :k] for one, k in zip(factors, ranks, strict=True)], dim=1)
    S = torch.cat([one.S[:k] for one, k in zip(factors, ranks, strict=True)])
    Vh = torch.cat([one.Vh[:k] for one, k in zip(factors, ranks, strict=True)])
    return U, S, Vh


def warn_where_undefined(factors: list[Factors]) -> None:
    """Name what the formula leaves undefined: zero tasks, ties at the cut, ranks below k, more tasks than ranks."""
    present = [one for one in factors if not one.is_zero]
    key = factors[0].key
    if present and len(present) < len(factors):
        zero = ", ".join(repr(one.task) for one in factors if one.is_zero)
        warn(f"{key}: the delta of task {zero} is zero; it takes no part in the decorrelation of this parameter.")
    smaller = min(len(factors[0].U), factors[0].Vh.shape[1])
    if len(present) > smaller and factors[0].rank == 1:
        warn(f"{key}: {len(present)} tasks share a matrix of rank {smaller}; each keeps its first singular triplet.")
    for one in present:
        rank = int((one.S > 0).sum())
        if rank < one.rank:
            warn(f"{key}: task {one.task!r} has rank {rank}, below the {one.rank} asked for; the rest is left out.")
        elif one.gap < TIE:
            warn(
                f"{key}: the singular values of task {one.task!r} tie at the cut (rank {one.rank}, relative gap "
                f"{one.gap:.1e}); the dominant subspace is not well defined. Choose another rank."
            )
