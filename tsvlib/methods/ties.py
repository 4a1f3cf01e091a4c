"""TIES: trim, elect sign, merge."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ..masks import magnitude_mask
from .registry import MethodParameters, method


class Ties(MethodParameters):
    """How much of each task survives trimming."""

    density: float = Field(0.2, gt=0, le=1, description="share of entries kept of each parameter of each task")


@method("ties", source="Yadav et al. 2023 (arXiv 2306.01708)", parameters=Ties, others=None)
def ties(deltas: Sequence[Tensor], parameters: Ties) -> Tensor:
    """Mean of the largest entries that agree with the elected sign.

    The largest are chosen within each parameter; the paper chooses within the whole task vector.
    """
    return merged_by_sign(torch.stack([delta * magnitude_mask(delta, parameters.density) for delta in deltas]))


def merged_by_sign(trimmed: Tensor) -> Tensor:
    """Elected sign, then the mean of the non-zero entries that have it (Yadav et al. 2023, steps 2 and 3).

    Args:
        trimmed: shape (T, ...).
    """
    elected = trimmed.sum(dim=0).sign()
    majority = elected.sum().sign()  # where the entries cancel exactly, the sign of most others decides
    elected = torch.where(elected == 0, majority, elected)
    agreeing = (trimmed.sign() == elected) & (trimmed != 0)
    return (trimmed * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
