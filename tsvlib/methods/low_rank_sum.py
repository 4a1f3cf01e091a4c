"""The paper's ablation without decorrelation: the sum of low-rank task matrices."""

from pydantic import Field
from torch import Tensor

from ..factors import Factors, concatenated, kept_rank
from .registry import MethodParameters, method


class LowRank(MethodParameters):
    """The share of the rank that each task keeps."""

    rank_fraction: float | None = Field(
        None, gt=0, le=1, description="share of min(m, n) kept of each task; by default 1 / number of tasks"
    )


def rank(shape: tuple[int, int], tasks: int, parameters: LowRank) -> int:
    """How many singular triplets of each task it needs."""
    return kept_rank(shape, tasks, parameters.rank_fraction)


@method("low-rank-sum", source="Gargiulo et al. 2025, ablation: low-rank only", parameters=LowRank, rank=rank)
def low_rank_sum(factors: list[Factors], parameters: LowRank) -> Tensor:
    """Sum of the task matrices' best approximations of rank k."""
    U, S, Vh = concatenated(factors)
    return (U * S) @ Vh
