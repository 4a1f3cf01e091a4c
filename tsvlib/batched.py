"""The same numerics for accelerators: same-shaped matrices at once, and nothing but matrix products on the device.

Eigensolvers are slow there, so the symmetric eigenproblems (n, n) go to LAPACK on the host, where each thread of a
merge solves its own while the device multiplies for the others. Every thread works in a stream of its own: the copies
of one parameter overlap the products of another.

Plain torch operations that run on any device; the tests run them on the CPU. No GPU was at hand: speed and accuracy
there are unmeasured (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from .lapack import eigenpairs, top_eigenpairs

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
    precise = torch.ldexp(matrices, -exponent).double()
    gramians = (precise.mT @ precise).cpu().numpy()
    pairs = [top_eigenpairs(gramian, min(k + 1, len(gramian))) for gramian in gramians]
    S = np.sqrt(np.maximum([squares for squares, _ in pairs], 0))
    V = np.stack([vectors[:, :k] for _, vectors in pairs])
    inverse = np.divide(1, S[:, :k], out=np.zeros_like(S[:, :k]), where=S[:, :k] > 0)
    U = precise @ upload(torch.from_numpy(V * inverse[:, None, :]), matrices.device)
    values = torch.ldexp(upload(torch.from_numpy(S), matrices.device), exponent[:, :, 0])
    return U.float(), values, upload(torch.from_numpy(V), matrices.device).mT.float()


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
        squares, Q = (
            upload(torch.from_numpy(np.ascontiguousarray(found)), X.device)
            for found in eigenpairs(gramian.cpu().numpy())
        )
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


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device; from page-locked memory, so that the copy overlaps the work of other streams."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """The calling thread's work goes to a stream of its own, beside that of other threads."""
    with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
        yield


@contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products in float32 proper, not in TF32, for the time being."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
