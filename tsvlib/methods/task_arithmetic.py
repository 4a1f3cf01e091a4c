"""Task arithmetic."""

from collections.abc import Sequence
from functools import reduce

import torch
from pydantic import Field
from torch import Tensor

from .registry import MethodParameters, method


class TaskArithmetic(MethodParameters):
    """Alpha multiplies the sum of the task vectors; 1 / T makes it the average."""

    alpha: float = Field(0.3, allow_inf_nan=False, description="scale of the summed task vectors")


@method("task-arithmetic", source="Ilharco et al. 2023 (arXiv 2212.04089)", parameters=TaskArithmetic, others=None)
def task_arithmetic(deltas: Sequence[Tensor], parameters: TaskArithmetic) -> Tensor:
    """Sum of the deltas."""
    return reduce(torch.add, deltas)
