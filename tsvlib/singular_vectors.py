"""The dominant singular triplets of one task matrix: U (m, k), S (k), Vh (k, n).

A merge depends only on the dominant *subspaces*, so the short side's Gram matrix in float64 and a partial symmetric
eigensolver give more accuracy than a full float32 SVD, for a fraction of its work (docs/numerics.md).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import batched
from .errors import MethodError, NumericalError
from .lapack import gram, top_eigenpairs

Mode = Literal["exact", "fast", "reference"]
RANK_TOLERANCE = 1e-7  # float32 weights say nothing about singular values below this times the largest
FAST_TOLERANCE = 5e-3  # largest estimated error of the rank-k part that `fast` accepts before it falls back to exact
_FLOAT32_ROUNDING = 6e-8
_SAFE_EXPONENT = 60  # beyond 2**±60 the matrix itself is rescaled, so that no float32 product leaves the range
_SINGLE_PRECISION_APPLY = 1e-3  # below this s_k / s_1 the left vectors are formed in float64


class Triplets(NamedTuple):
    """U (m, k), S (k) in descending order, Vh (k, n), and what was found at the cut."""

    U: Tensor
    S: Tensor
    Vh: Tensor
    gap: (
        float  # (s_k - s_{k+1}) / s_1; 0 is a tie, at which the dominant subspace is not defined; inf for the full rank
    )
    mode: Mode  # what was used: `fast` becomes `exact` where it fell back


def top_singular_triplets(matrix: Tensor, k: int, mode: Mode = "exact") -> tuple[Tensor, Tensor, Tensor]:
    """The k largest singular values with their vectors (Gargiulo et al. 2025, Eq. 4).

    Args:
        matrix: shape (m, n), any floating dtype, on any device.
        k: between 1 and min(m, n).
        mode: ``exact`` (float64 Gram matrix), ``fast`` (float32 Gram matrix where its estimated error is below
            ``FAST_TOLERANCE``, else exact) or ``reference`` (full SVD, as the paper's code).

    Returns:
        U (m, k), S (k) descending and Vh (k, n), in float32 (float64 for a float64 matrix). Except in ``reference``
        mode, triplets with a singular value of at most ``RANK_TOLERANCE`` times the largest are zero.

    Raises:
        NumericalError: the matrix is not floating-point, not two-dimensional, or holds NaN or Inf.
        MethodError: k or mode is out of range.
    """
    found = find_triplets(matrix, k, mode)
    return found.U, found.S, found.Vh


def find_triplets(matrix: Tensor, k: int, mode: Mode = "exact") -> Triplets:
    """As :func:`top_singular_triplets`, and the gap at the cut."""
    _check(matrix, k, mode)
    matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32)).contiguous()
    if matrix.shape[0] < matrix.shape[1]:  # LAPACK is nearly twice as fast on the tall orientation
        found = _tall_triplets(matrix.T, k, mode)
        return found._replace(U=found.Vh.T, Vh=found.U.T)
    return _tall_triplets(matrix, k, mode)


def _tall_triplets(matrix: Tensor, k: int, mode: Mode) -> Triplets:
    if mode == "reference" or matrix.dtype == torch.float64:
        return _full_svd(matrix, k, mode)
    if batched.on_accelerator(matrix.device):
        return find_triplets_batched(matrix[None], k)[0]
    return _gram_triplets(matrix.numpy(), k, mode)


def find_triplets_batched(matrices: Tensor, k: int) -> list[Triplets]:
    """The exact triplets of several matrices at once, by batched products on their device.

    Args:
        matrices: shape (T, m, n), float32 or float64.
        k: between 1 and min(m, n).
    """
    if matrices.dtype == torch.float64:
        return [find_triplets(matrix, k) for matrix in matrices]
    if matrices.shape[1] < matrices.shape[2]:
        return [one._replace(U=one.Vh.T, Vh=one.U.T) for one in find_triplets_batched(matrices.mT, k)]
    if not torch.isfinite(matrices).all():
        raise NumericalError("The matrix holds NaN or Inf.")
    U, S, Vh = batched.batched_triplets(matrices, k)
    exists = RANK_TOLERANCE * S[:, :1] < S
    gaps = [_relative_gap(values.cpu().numpy(), k) for values in S]
    kept = exists[:, :k]
    U, values, Vh = U * kept[:, None, :], (S[:, :k] * kept).float(), Vh * kept[:, :, None]
    return [
        Triplets(*one, gap=gap, mode="exact") for one, gap in zip(zip(U, values, Vh, strict=True), gaps, strict=True)
    ]


def check_mode(mode: str) -> None:
    """Raise a MethodError if there is no such mode."""
    if mode not in ("exact", "fast", "reference"):
        raise MethodError(f"mode = {mode!r}: choose exact, fast or reference.")


def _check(matrix: Tensor, k: int, mode: str) -> None:
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise NumericalError(f"Expected a floating-point matrix, not {matrix.dtype} of shape {tuple(matrix.shape)}.")
    check_mode(mode)
    if not 1 <= k <= min(matrix.shape):
        raise MethodError(f"k = {k}: must lie between 1 and {min(matrix.shape)} for shape {tuple(matrix.shape)}.")


def _full_svd(matrix: Tensor, k: int, mode: Mode) -> Triplets:
    if not torch.isfinite(matrix).all():
        raise NumericalError("The matrix holds NaN or Inf.")
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    if mode != "reference":
        exists = RANK_TOLERANCE * S[0] < S
        U, S, Vh = U * exists, S * exists, Vh * exists[:, None]
    return Triplets(U[:, :k], S[:k], Vh[:k], _relative_gap(S.cpu().numpy(), k), mode)


def _gram_triplets(matrix: np.ndarray, k: int, mode: Mode) -> Triplets:
    """Of a tall float32 matrix D (m, n): V from the eigenvectors of DᵀD, U = D V / s."""
    dtype = np.float32 if mode == "fast" else np.float64
    exponent = 0
    if mode == "fast":
        matrix, exponent = _rescaled(matrix)
    gramian = gram(matrix, dtype)
    energy = float(np.trace(gramian))  # NaN and Inf anywhere in the matrix reach it
    if not math.isfinite(energy):
        raise NumericalError("The matrix holds NaN or Inf.")
    if energy == 0:
        return _zero_triplets(matrix.shape, k, mode)
    if mode == "exact":
        exponent = math.frexp(energy)[1] // 2
        gramian *= 2.0 ** (-2 * exponent)  # so that the eigensolver sees the same numbers at every scale
        if abs(exponent) > _SAFE_EXPONENT:
            matrix = np.ldexp(matrix, -exponent)
    squares, V = top_eigenpairs(gramian, min(k + 1, len(gramian)))
    S = np.sqrt(np.maximum(squares, 0))
    if mode == "fast" and _estimated_error(S, k) > FAST_TOLERANCE:
        return _gram_triplets(np.ldexp(matrix, exponent), k, "exact")
    gap = _relative_gap(S, k)
    S, V = S[:k], V[:, :k]
    exists = RANK_TOLERANCE * S[0] < S
    inverse = np.divide(1, S, out=np.zeros_like(S), where=exists)
    if mode == "exact" and abs(exponent) <= _SAFE_EXPONENT:
        inverse = inverse * 2.0**-exponent
    precise = mode == "exact" and S[exists][-1] < _SINGLE_PRECISION_APPLY * S[0]
    U = matrix @ (V * inverse).astype(np.float64 if precise else np.float32)
    values = np.ldexp(S * exists, exponent)
    as_tensor = lambda array: torch.from_numpy(np.ascontiguousarray(array, np.float32))  # noqa: E731
    return Triplets(as_tensor(U), as_tensor(values), as_tensor((V * exists).T), gap, mode)


def _rescaled(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """The matrix with its largest entry brought near 1 by a power of two, and the exponent taken out."""
    largest = float(np.max(np.abs(matrix), initial=0))
    if not math.isfinite(largest) or largest == 0:
        return matrix, 0
    exponent = math.frexp(largest)[1]
    return np.ldexp(matrix, -exponent), exponent


def _estimated_error(S: np.ndarray, k: int) -> float:
    """A-priori bound on the relative error of the rank-k part from a float32 Gram matrix (docs/numerics.md).

    The larger of what the gap at the cut lets the subspace turn, and of how little is left of the k-th square.
    """
    squares = np.square(S.astype(np.float64))
    smallest = max(squares[k - 1], 1e-300)
    turn = 0.0
    if k < len(S):
        share = math.sqrt(smallest / squares[:k].sum())
        turn = squares[0] / max(smallest - squares[k], 1e-300) * share
    return _FLOAT32_ROUNDING * max(turn, squares[0] / smallest)


def _relative_gap(S: np.ndarray, k: int) -> float:
    if k == len(S) or S[0] == 0:  # nothing is cut off
        return math.inf
    return (float(S[k - 1]) - float(S[k])) / float(S[0])


def _zero_triplets(shape: tuple[int, ...], k: int, mode: Mode) -> Triplets:
    return Triplets(torch.zeros(shape[0], k), torch.zeros(k), torch.zeros(k, shape[1]), math.inf, mode)
