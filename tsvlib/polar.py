"""The orthogonal polar factor: the nearest matrix with orthonormal columns, by a rank-safe whitening.

X = P D Qᵀ has the polar factor P Qᵀ = X (XᵀX)^(-1/2) (Gargiulo et al. 2025, Algorithm 1 and Prop. 4.1). The paper's
code keeps directions with D = 0, where P Qᵀ is arbitrary; here directions below a tolerance are dropped, so that
overlapping tasks have one answer.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from . import batched
from .errors import MethodError, NumericalError
from .lapack import eigenpairs, gram

TOLERANCE = 1e-5
_SAFE_EXPONENT = 30
_WELL_CONDITIONED = 1e-2  # smallest eigenvalue of a float32 Gram matrix that may be used; below, float64


def polar_factor(matrix: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """The polar factor P Qᵀ of X = P D Qᵀ over the directions with D > tolerance · max D.

    Args:
        matrix: X, shape (m, n), any floating dtype, on any device.
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
    if not torch.isfinite(matrix).all():
        raise NumericalError("The matrix holds NaN or Inf.")
    return polar(matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32)), tolerance)[0]


def polar(X: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """The polar factor of a finite X (m, n), float32 or float64; and min D / max D."""
    if X.shape[0] < X.shape[1]:
        P, smallest = polar(X.T, tolerance)
        return P.T, smallest
    largest = float(X.abs().max()) if X.numel() else 0.0
    if largest == 0:
        return torch.zeros_like(X), 1.0
    exponent = math.frexp(largest)[1]
    if abs(exponent) > _SAFE_EXPONENT:  # so that no square leaves the range
        X = torch.ldexp(X, torch.tensor(-exponent))
    if batched.on_accelerator(X.device):
        return batched.batched_polar(X, tolerance)
    if X.dtype == torch.float64:
        P, D, Qh = torch.linalg.svd(X, full_matrices=False)
        return (P * (tolerance * D[0] < D)) @ Qh, float(D[-1] / D[0])
    whitened, smallest = _whitened(X.numpy(), tolerance)
    return torch.from_numpy(whitened), smallest


def polar_times(X: Tensor, right: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """polar(X) @ right for X (m, p) and right (p, n), without forming polar(X) where X is well conditioned."""
    if not batched.on_accelerator(X.device) and X.dtype == torch.float32 and 2 * X.shape[1] <= X.shape[0]:
        squares, Q = eigenpairs(gram(X.numpy(), np.float32))
        if squares[0] > _WELL_CONDITIONED:
            inner = (Q / np.sqrt(squares)) @ (Q.T @ right.numpy())
            return torch.from_numpy(X.numpy() @ inner), _conditioning(squares)
    P, smallest = polar(X, tolerance)
    return P @ right, smallest


def svd_polar(X: Tensor) -> Tensor:
    """The polar factor as the paper's code computes it: by a full SVD, arbitrary where D = 0."""
    P, _, Qh = torch.linalg.svd(X, full_matrices=False)
    return P @ Qh


def _whitened(X: np.ndarray, tolerance: float) -> tuple[np.ndarray, float]:
    """X (XᵀX)^(-1/2) of a tall float32 X (m, p), through a float64 Gram matrix."""
    squares, Q = eigenpairs(gram(X, np.float64))
    kept = squares > tolerance**2 * squares[-1]
    P = X @ (Q[:, kept] / np.sqrt(squares[kept]))
    return P.astype(np.float32) @ Q[:, kept].astype(np.float32).T, _conditioning(squares)


def _conditioning(squares: np.ndarray) -> float:
    return float(np.sqrt(max(squares[0], 0) / squares[-1]))
