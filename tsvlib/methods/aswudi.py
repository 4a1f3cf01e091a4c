"""ASWUDI: interference-free merging in closed form, over an adaptively chosen part of the spectrum."""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from ..task_vector import is_zero
from .registry import MethodParameters, method

_SMALLEST = 1e-8  # eigenvalues are at least this; their sum is the number of tasks


@method("aswudi", source="WUDI (arXiv 2503.08099) in closed form, adaptively truncated: ASWUDI 2026")
def aswudi(deltas: Sequence[Tensor], parameters: MethodParameters) -> Tensor:
    """Least-squares fit to all deltas on the effective rank of their row space, their sum elsewhere."""
    total = reduce(torch.add, deltas)
    C = total.new_zeros(total.shape[1], total.shape[1], dtype=torch.float64)
    D = torch.zeros_like(total, dtype=torch.float64)
    for delta in deltas:
        if is_zero(delta):
            continue
        unit = (delta / torch.linalg.vector_norm(delta)).double()
        square = unit.T @ unit
        C += square
        D += delta.double() @ square
    eigenvalues, V = torch.linalg.eigh(C)
    eigenvalues, V = eigenvalues.clamp(min=_SMALLEST).flip(0), V.flip(1)
    effective = float(eigenvalues.sqrt().sum() ** 2 / eigenvalues.sum())
    V = V[:, : math.ceil(effective)]
    theta = total.double()
    theta = theta - (theta @ V) @ V.T + (D @ V / eigenvalues[: V.shape[1]]) @ V.T
    return theta.to(total.dtype)
