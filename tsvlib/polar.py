"""The orthogonal polar factor: the nearest matrix with orthonormal columns, by a rank-safe whitening.

X = P D Qᵀ has the polar factor P Qᵀ = X (XᵀX)^(-1/2) (Gargiulo et al. 2025, §4.2 and Prop. 4.1). The paper's code keeps
directions with D = 0, where P Qᵀ is arbitrary; here directions below a tolerance are dropped, so that overlapping tasks
have one answer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .errors import MethodError, NumericalError
from .lapack import gram

TOLERANCE = 1e-5
_WELL_CONDITIONED = 1e-2  # smallest eigenvalue of a float32 Gram matrix that may be used; below, float64


def polar_factor(matrix: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """The polar factor P Qᵀ of X = P D Qᵀ over the directions with D > tolerance · max D.

    Args:
        matrix: X, shape (m, n), any floating dtype.
        tolerance: relative, from 1e-6 (what float64 Gram matrices resolve) to below 1.

    Returns:
        Shape (m, n), float32 (float64 for a float64 matrix): a partial isometry, zero where the matrix is zero.

    Raises:
        NumericalError: the matrix is not floating-point, not two-dimensional, or holds NaN or Inf.
        MethodError: the tolerance is out of range.
    """
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise NumericalError(f"Expected a floating-point matrix, not {matrix.dtype} of shape {tuple(matrix.shape)}.")
    if not 1e-6 <= tolerance < 1:
        raise MethodError(f"tolerance = {tolerance}: must lie between 1e-6 and below 1.")
    matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    if not torch.isfinite(matrix).all():
        raise NumericalError("The matrix holds NaN or Inf.")
    if matrix.shape[0] < matrix.shape[1]:
        return polar_factor(matrix.T, tolerance).T
    if matrix.dtype == torch.float64:
        P, D, Qh = torch.linalg.svd(matrix, full_matrices=False)
        return (P * (tolerance * D[:1] < D)) @ Qh
    return torch.from_numpy(whiten(matrix.numpy(), tolerance)[0])


def whiten(X: np.ndarray, tolerance: float) -> tuple[np.ndarray, float]:
    """X (XᵀX)^(-1/2) of a tall float32 X (m, p), through a float64 Gram matrix; and min D / max D."""
    squares, Q = np.linalg.eigh(gram(X, np.float64))
    kept = squares > tolerance**2 * squares[-1:]
    P = X @ (Q[:, kept] / np.sqrt(squares[kept]))
    return P.astype(np.float32) @ Q[:, kept].astype(np.float32).T, _conditioning(squares)


def whiten_and_apply(X: np.ndarray, right: np.ndarray, tolerance: float) -> tuple[np.ndarray, float]:
    """polar(X) @ right for tall X (m, p) and right (p, n), without forming polar(X) where X is well conditioned."""
    if 2 * X.shape[1] <= X.shape[0]:
        squares, Q = np.linalg.eigh(gram(X, np.float32))
        if squares[0] > _WELL_CONDITIONED:
            return X @ ((Q / np.sqrt(squares)) @ (Q.T @ right)), _conditioning(squares)
    P, conditioning = whiten(X, tolerance)
    return P @ right, conditioning


def _conditioning(squares: np.ndarray) -> float:
    return float(np.sqrt(max(squares[0], 0) / squares[-1])) if squares[-1] > 0 else 0.0
