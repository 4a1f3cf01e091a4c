"""Task matrices with known spectra, and the paper's algorithm written out plainly, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """A random (rows, columns) float64 matrix with orthonormal columns."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def with_spectrum(m: int, n: int, singular_values: Tensor, seed: int) -> Tensor:
    """A random (m, n) float32 matrix with these singular values."""
    rank = len(singular_values)
    U, V = orthonormal(m, rank, 2 * seed), orthonormal(n, rank, 2 * seed + 1)
    return ((U * singular_values) @ V.T).float()


def power_law(rank: int, decay: float, floor: float = 0.0) -> Tensor:
    """i^-decay + floor, for i = 1 … rank, in float64."""
    return torch.arange(1, rank + 1, dtype=torch.float64) ** -decay + floor


def task_matrices(
    m: int, n: int, tasks: int, decay: float = 1.0, floor: float = 0.02, seed: int = 0, scale: float = 0.01
) -> list[Tensor]:
    """Independent float32 task matrices whose spectra fall like those of fine-tuned encoders."""
    spectrum = scale * power_law(min(m, n), decay, floor)
    return [with_spectrum(m, n, spectrum, 1000 * seed + task) for task in range(tasks)]


def plain_tsv_merge(deltas: Sequence[Tensor], k: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gargiulo et al. 2025, Algorithm 1, by full SVDs in this dtype."""
    triplets = [torch.linalg.svd(delta.to(dtype), full_matrices=False) for delta in deltas]
    U = torch.cat([U[:, :k] for U, _, _ in triplets], dim=1)
    S = torch.cat([S[:k] for _, S, _ in triplets])
    Vh = torch.cat([Vh[:k] for _, _, Vh in triplets])
    return (plain_polar(U) * S) @ plain_polar(Vh)


def plain_polar(X: Tensor) -> Tensor:
    """P Qᵀ of the SVD X = P D Qᵀ."""
    P, _, Qh = torch.linalg.svd(X, full_matrices=False)
    return P @ Qh


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, Frobenius."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
