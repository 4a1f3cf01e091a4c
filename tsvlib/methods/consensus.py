"""Consensus task arithmetic: entries that several tasks need."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ..masks import tall_masks
from .registry import method
from .task_arithmetic import TaskArithmetic


class Consensus(TaskArithmetic):
    """When a task needs an entry, and how many must."""

    threshold: float = Field(0.4, gt=0, allow_inf_nan=False, description="lambda of the TALL masks")
    agreement: int = Field(2, ge=1, description="tasks that must need an entry; at most all of them")


@method("consensus-ta", source="Wang et al. 2024 (arXiv 2405.07813)", parameters=Consensus, others=None)
def consensus(deltas: Sequence[Tensor], parameters: Consensus) -> Tensor:
    """Sum of the deltas where at least two tasks' TALL masks agree."""
    masks, total = tall_masks(deltas, parameters.threshold)
    needed = torch.stack(masks).sum(dim=0) >= min(parameters.agreement, len(masks))
    return total * needed
