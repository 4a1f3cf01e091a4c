"""Task arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from .registry import MethodParameters, method


class TaskArithmetic(MethodParameters):
    """Alpha multiplies the sum of the task vectors; 1/T makes it the average."""

    alpha: float = Field(0.3, allow_inf_nan=False, description="scale of the summed task vectors")


@method("task-arithmetic", source="Ilharco et al. 2023, §2", parameters=TaskArithmetic, others=None)
def task_arithmetic(deltas: Sequence[Tensor], parameters: MethodParameters) -> Tensor:
    """Sum of the deltas."""
    total: Tensor | None = None
    for delta in deltas:
        total = delta if total is None else total + delta
    assert total is not None
    return total
