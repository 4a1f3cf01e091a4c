"""Iso-CTS: a common subspace and a small one of each task, equally strong."""

from collections.abc import Sequence
from functools import reduce

import torch
from pydantic import Field
from torch import Tensor

from ..polar import polar_factor
from ..singular_vectors import top_singular_triplets
from .registry import MethodParameters, method


class IsoCTS(MethodParameters):
    """How the rank is shared."""

    common: float = Field(0.8, ge=0, le=1, description="share of the rank given to the common subspace")


@method("iso-cts", source="Marczak et al. 2025, Iso-CTS (arXiv 2502.04959)", parameters=IsoCTS)
def iso_cts(deltas: Sequence[Tensor], parameters: IsoCTS) -> Tensor:
    """Common and task-specific singular vectors, made orthogonal, with all singular values their mean."""
    total = reduce(torch.add, deltas)
    rank = min(total.shape)
    own = round((rank - int(parameters.common * rank)) / len(deltas))  # triplets of each task
    own = min(own, rank // len(deltas))
    shared = rank - own * len(deltas)
    triplets = []
    common = torch.zeros_like(total[:, :0])
    if shared:
        common, S, Vh = top_singular_triplets(total, shared)
        triplets = [(common, S, Vh)]
    if own:
        triplets += [top_singular_triplets(delta - common @ (common.T @ delta), own) for delta in deltas]
    U, S, Vh = (torch.cat(parts, dim=dim) for parts, dim in zip(zip(*triplets, strict=True), (1, 0, 0), strict=True))
    return S.mean() * (polar_factor(U) @ polar_factor(Vh))
