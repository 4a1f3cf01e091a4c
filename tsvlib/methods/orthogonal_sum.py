"""The paper's ablation without truncation: all singular vectors, made orthogonal across tasks."""

from torch import Tensor

from ..factors import Factors
from .registry import method
from .tsv_merge import Decorrelation, tsv_merge


def full_rank(shape: tuple[int, int], tasks: int, parameters: Decorrelation) -> int:
    """k = min(m, n)."""
    return min(shape)


@method(
    "orthogonal-sum",
    source="Gargiulo et al. 2025, ablation: interference reduction only",
    parameters=Decorrelation,
    rank=full_rank,
)
def orthogonal_sum(factors: list[Factors], parameters: Decorrelation) -> Tensor:
    """As tsv-m, without the low-rank approximation; on square matrices exactly the mean."""
    return tsv_merge(factors, parameters)
