"""Singular value calibration: a post-step that weakens directions in which many tasks add up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..singular_vectors import top_singular_triplets


def calibrated(merged: Tensor, deltas: Sequence[Tensor], floor: float | None = None) -> Tensor:
    """The merged delta with each singular value σ_r multiplied by T / Σ_t max(floor, s_rt).

    s_rt = ⟨u_rᵀ M, u_rᵀ Δ_t⟩ / ‖u_rᵀ Δ_t‖² is how much of task t the merged delta M holds in its direction u_r
    (SVC 2026, arXiv 2602.05536).

    Args:
        merged: M, shape (m, n), alpha included.
        deltas: T task matrices of the same shape.
        floor: least s_rt assumed; by default 1 / T. Its authors use 1 for TSV-Merge.

    Returns:
        Shape (m, n).
    """
    floor = 1 / len(deltas) if floor is None else floor
    U, S, Vh = top_singular_triplets(merged, min(merged.shape))
    shares = torch.zeros_like(S)
    for delta in deltas:
        projected = U.T @ delta
        energy = projected.square().sum(dim=1)
        agreement = S * (projected * Vh).sum(dim=1)
        shares += torch.where(energy > 0, agreement / energy, 0.0).clamp(min=floor)
    return (U * (S * len(deltas) / shares)) @ Vh
