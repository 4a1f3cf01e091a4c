"""Masks that recover one task from a shared vector or from its own largest entries: the rivals of TSV-Compress."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from .errors import MethodError


def tall_masks(deltas: Sequence[Tensor], threshold: float = 0.4) -> tuple[list[Tensor], Tensor]:
    """TALL masks of all tasks, and the multi-task vector they apply to (Wang et al. 2024, arXiv 2405.07813).

    Task t keeps the entries with |τ_t| ≥ threshold · |Σ τ − τ_t|; it is recovered as mask · Σ τ.

    Args:
        deltas: T tensors of one shape.
        threshold: λ, above 0; the paper's authors choose among 0.2 … 0.6 on validation data.

    Returns:
        T boolean masks and the sum of the deltas, each of the deltas' shape.
    """
    if not threshold > 0:
        raise MethodError(f"threshold = {threshold}: must be above 0.")
    total = reduce(torch.add, deltas)
    return [delta.abs() >= threshold * (total - delta).abs() for delta in deltas], total


def magnitude_mask(delta: Tensor, density: float) -> Tensor:
    """Mask of the entries of largest magnitude; the task is recovered as mask · delta.

    Args:
        delta: any shape.
        density: share of the entries that is kept, above 0 and at most 1; equal magnitudes stay together.

    Returns:
        Boolean, of the delta's shape.
    """
    if not 0 < density <= 1:
        raise MethodError(f"density = {density}: must be above 0 and at most 1.")
    magnitudes = delta.abs().reshape(-1)
    if magnitudes.numel() == 0:
        return torch.ones_like(delta, dtype=torch.bool)
    dropped = magnitudes.numel() - max(1, round(density * magnitudes.numel()))
    return delta.abs() >= magnitudes.kthvalue(dropped + 1).values
