"""Iso-C: all directions of the summed task matrix, equally strong."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from ..singular_vectors import top_singular_triplets
from .registry import MethodParameters, method


@method("iso-c", source="Marczak et al. 2025, Iso-C (arXiv 2502.04959)")
def iso_c(deltas: Sequence[Tensor], parameters: MethodParameters) -> Tensor:
    """Sum of the deltas with every singular value replaced by their mean."""
    total = reduce(torch.add, deltas)
    U, S, Vh = top_singular_triplets(total, min(total.shape))
    return S.mean() * (U @ Vh)
