"""The same numerics as batched matrix products, for accelerators: same-shaped matrices at once, no LAPACK calls.

Written in plain torch operations that run on any device; the tests run them on the CPU. No GPU was at hand: speed and
accuracy there are unmeasured (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_ORTHONORMAL = 1e-5  # largest entry of PᵀP − I at which the polar iteration stops
_ITERATIONS = 60  # many more than directions of relative size 1e-6 need


def on_accelerator(device: torch.device) -> bool:
    """Whether work on this device goes through here."""
    return device.type != "cpu"


def batched_triplets(matrices: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triplets from float64 Gram matrices: one more than k where there are more, to see the gap at the cut.

    Args:
        matrices: shape (T, m, n) with m ≥ n, float32, finite.
        k: between 1 and n.

    Returns:
        U (T, m, k), all S (T, min(k + 1, n)) descending, in float64, and Vh (T, k, n). Triplets that do not exist
        numerically are not marked.
    """
    exponent = torch.frexp(matrices.abs().amax(dim=(1, 2), keepdim=True))[1]
    scaled = torch.ldexp(matrices, -exponent)
    precise = scaled.double()
    squares, V = torch.linalg.eigh(precise.mT @ precise)
    S = squares.clamp(min=0).sqrt().flip(1)[:, : k + 1]
    V = V.flip(2)[:, :, :k]
    inverse = torch.where(S[:, :k] > 0, 1 / S[:, :k], 0.0)
    U = (precise @ (V * inverse[:, None, :])).float()
    return U, torch.ldexp(S, exponent[:, :, 0]), V.mT.float()


def batched_polar(X: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """The polar factor of X (m, p), m ≥ p, largest entry 1; and a lower bound of min D / max D, or its value.

    Where a Cholesky factorisation shows that no direction is below the tolerance, by Newton–Schulz iterations, which
    are matrix products alone; else through the eigenvectors of the Gram matrix.
    """
    gramian = X.double().T @ X.double()
    bound = gramian.abs().sum(dim=1).max()  # at least the largest eigenvalue
    identity = torch.eye(len(gramian), dtype=torch.float64, device=X.device)
    _, failed = torch.linalg.cholesky_ex(gramian - tolerance**2 * bound * identity)
    if failed:
        squares, Q = torch.linalg.eigh(gramian)
        scale = torch.where(squares > tolerance**2 * squares[-1], squares.abs().rsqrt(), 0.0)
        P = (X.double() @ (Q * scale)) @ Q.T
        return P.to(X.dtype), float((squares[0].clamp(min=0) / squares[-1]).sqrt())
    P = X / bound.sqrt().to(X.dtype)
    identity = identity.to(X.dtype)
    for _ in range(_ITERATIONS):
        excess = P.T @ P - identity
        P = P - 0.5 * P @ excess
        if excess.abs().max() < _ORTHONORMAL:  # the step just taken squares what was left
            break
    return P, tolerance


@contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products in float32 proper, not in TF32, for the time being."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
