"""TSV-Merge by whitening: the authors' second variant, computed so that it does not lose half the digits."""

import torch
from torch import Tensor

from ..factors import Factors, concatenated
from .low_rank_sum import rank
from .registry import method
from .tsv_merge import TSVMerge

_REGULARISATION = 1e-12  # Gargiulo et al. 2025, Appendix D.2.1


@method("tsv-m-eigh", source="Gargiulo et al. 2025, Prop. 4.1 and App. D.2.1", parameters=TSVMerge, rank=rank)
def tsv_merge_eigh(factors: list[Factors], parameters: TSVMerge) -> Tensor:
    """As tsv-m, with X (XᵀX)^(-1/2) from an eigendecomposition of XᵀX, in float64."""
    U, S, Vh = concatenated(factors)
    left = _whitened(U.double(), parameters.tolerance)
    right = _whitened(Vh.T.double(), parameters.tolerance)
    return ((left * S) @ right.T).to(U.dtype)


def _whitened(X: Tensor, tolerance: float) -> Tensor:
    """X (XᵀX)^(-1/2). The authors take |λ| of the eigenvalues that float32 turns negative; here they are dropped."""
    squares, Q = torch.linalg.eigh(X.T @ X)
    kept = squares > tolerance**2 * squares[-1:]
    scale = torch.where(kept, 1 / (squares.abs().sqrt() + _REGULARISATION), 0.0)
    return (X @ (Q * scale)) @ Q.T
