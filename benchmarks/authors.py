"""The merge as the paper's code computes it, written plainly: full float32 SVDs, zero-padded, polar factors by SVD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge(deltas: Sequence[Tensor]) -> Tensor:
    """Gargiulo et al. 2025, Algorithm 1, in the dtype of the deltas."""
    T = len(deltas)
    U = S = Vh = torch.empty(0)
    for task, delta in enumerate(deltas):
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        if task == 0:
            U, S, Vh = torch.zeros_like(left), torch.zeros_like(values), torch.zeros_like(right)
        k = len(values) // T
        part = slice(task * k, (task + 1) * k)
        U[:, part], S[part], Vh[part] = left[:, :k], values[:k], right[:k]
    P_U, _, Q_U = torch.linalg.svd(U, full_matrices=False)
    P_V, _, Q_V = torch.linalg.svd(Vh, full_matrices=False)
    return torch.linalg.multi_dot((P_U, Q_U, torch.diag(S), P_V, Q_V))
