"""Singular Task Interference: how far the singular vectors of different tasks overlap (Gargiulo et al. 2025, Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .errors import MethodError
from .singular_vectors import top_singular_triplets

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
    if norm not in NORMS:
        raise MethodError(f"norm = {norm!r}: choose {', '.join(NORMS)}.")
    if rank is None:
        rank = max(1, min(deltas[0].shape) // len(deltas))
    U, S, V = _concatenated([top_singular_triplets(delta, rank) for delta in deltas])
    left, right = U.T @ U, V.T @ V
    for block in range(0, len(S), rank):  # a task's own block vanishes; leave no rounding in it
        own = slice(block, block + rank)
        left[own, own] = 0
        right[own, own] = 0
    return float(NORMS[norm]((left * S) @ right))


def _concatenated(triplets: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = zip(*triplets, strict=True)
    return torch.cat(U, dim=1), torch.cat(S), torch.cat(Vh).T
