"""Singular Task Interference: how far the singular vectors of different tasks overlap (Gargiulo et al. 2025, Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from .errors import MethodError
from .singular_vectors import top_singular_triplets

SingularTriplets = tuple[Tensor, Tensor, Tensor]
Norm = Literal["entrywise_l1", "induced_l1", "frobenius", "nuclear"]
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "entrywise_l1": lambda matrix: matrix.abs().sum(),
    "induced_l1": lambda matrix: matrix.abs().sum(dim=0).max(),
    "frobenius": torch.linalg.matrix_norm,
    "nuclear": lambda matrix: torch.linalg.matrix_norm(matrix, "nuc"),
}


def singular_task_interference(deltas: Sequence[Tensor], rank: int | None = None, norm: Norm = "entrywise_l1") -> float:
    """‖(UᵀU − I) Σ (VᵀV − I)‖ over the concatenated singular vectors of all tasks (Gargiulo et al. 2025, Eq. 6).

    Args:
        deltas: T task matrices of one parameter, each (m, n).
        rank: singular triplets kept of each task; by default min(m, n) // T, at least 1, as in the merge.
        norm: the paper writes ‖·‖₁ without naming it; the sum of absolute entries fits its figures. Only the Frobenius
            and the nuclear norm do not depend on the choice of vectors inside a cluster of equal singular values.

    Returns:
        0 for one task, and for tasks with mutually orthogonal row and column spaces.

    Raises:
        MethodError: the norm or the rank is unknown or out of range.
    """
    return interference_of(_triplets(deltas, rank), norm)


def pairwise_task_interference(
    deltas: Sequence[Tensor], rank: int | None = None, norm: Norm = "entrywise_l1"
) -> Tensor:
    """The interference of every two tasks alone: symmetric (T, T), zero on the diagonal.

    Args:
        deltas: T task matrices of one parameter, each (m, n).
        rank: singular triplets kept of each task, as in :func:`singular_task_interference`.
        norm: as there.
    """
    return pairwise_interference_of(_triplets(deltas, rank), norm)


def pairwise_interference_of(triplets: Sequence[SingularTriplets], norm: Norm = "entrywise_l1") -> Tensor:
    """As :func:`pairwise_task_interference`, of tasks given by their U (m, k), S (k) and Vh (k, n)."""
    table = torch.zeros(len(triplets), len(triplets))
    for i, j in combinations(range(len(triplets)), 2):
        table[i, j] = table[j, i] = interference_of([triplets[i], triplets[j]], norm)
    return table


def interference_of(triplets: Sequence[SingularTriplets], norm: Norm = "entrywise_l1") -> float:
    """As :func:`singular_task_interference`, of tasks given by their U (m, k), S (k) and Vh (k, n)."""
    if norm not in NORMS:
        raise MethodError(f"norm = {norm!r}: choose {', '.join(NORMS)}.")
    U = torch.cat([U for U, _, _ in triplets], dim=1)
    S = torch.cat([S for _, S, _ in triplets])
    Vh = torch.cat([Vh for _, _, Vh in triplets])
    left, right = U.T @ U, Vh @ Vh.T
    start = 0
    for _, values, _ in triplets:  # a task's own block vanishes; leave no rounding in it
        own = slice(start, start + len(values))
        left[own, own] = 0
        right[own, own] = 0
        start = own.stop
    return float(NORMS[norm]((left * S) @ right))


def _triplets(deltas: Sequence[Tensor], rank: int | None) -> list[SingularTriplets]:
    if not deltas:
        raise MethodError("interference of no tasks: give at least one delta.")
    if rank is None:
        rank = max(1, min(deltas[0].shape) // len(deltas))
    return [top_singular_triplets(delta, rank) for delta in deltas]
