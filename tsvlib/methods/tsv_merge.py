"""TSV-Merge: low-rank task matrices, decorrelated."""

from __future__ import annotations

import warnings

import torch
from pydantic import Field
from torch import Tensor

from ..errors import TSVWarning
from ..factors import Factors
from ..polar import TOLERANCE, whiten, whiten_and_apply
from .registry import MethodParameters, method

SOURCE = "Gargiulo et al. 2025, Algorithm 1"


class LowRank(MethodParameters):
    """The share of the rank that each task keeps."""

    rank_fraction: float | None = Field(
        None, gt=0, le=1, description="share of min(m, n) kept of each task; by default 1 / number of tasks"
    )


class TSVMerge(LowRank):
    """And the tolerance of the polar factor."""

    tolerance: float = Field(TOLERANCE, ge=1e-6, lt=1, description="relative size of the directions dropped as shared")


def rank(shape: tuple[int, int], tasks: int, parameters: LowRank) -> int:
    """k = min(m, n) // T, or the given share, but at least 1."""
    full = min(shape)
    return max(1, full // tasks if parameters.rank_fraction is None else int(full * parameters.rank_fraction))


@method("low-rank-sum", source="Gargiulo et al. 2025, Table 4 (low-rank only)", parameters=LowRank, rank=rank)
def low_rank_sum(factors: list[Factors], parameters: LowRank) -> Tensor:
    """Sum of the task matrices' best approximations of rank k."""
    U, S, Vh = _concatenated(factors)
    return (U * S) @ Vh


@method("tsv-m", source=SOURCE, parameters=TSVMerge, rank=rank)
def tsv_merge(factors: list[Factors], parameters: TSVMerge) -> Tensor:
    """Sum of the rank-k task matrices with all tasks' singular vectors made orthogonal to each other."""
    U, S, Vh = _concatenated(factors)
    if factors[0].mode == "reference":
        return (_svd_polar(U) * S) @ _svd_polar(Vh)
    if len(S) == 0:
        return U @ Vh
    if U.shape[0] < Vh.shape[1]:
        return _decorrelated(Vh.T, S, U, factors, parameters).T
    return _decorrelated(U, S, Vh.T, factors, parameters)


def _decorrelated(long: Tensor, S: Tensor, short: Tensor, factors: list[Factors], parameters: TSVMerge) -> Tensor:
    """polar(long) · diag(S) · polar(short)ᵀ. The short side is nearly square, hence ill conditioned: float64 there."""
    wide = short.shape[0] < short.shape[1]
    P, smallest_short = whiten(short.numpy().T if wide else short.numpy(), parameters.tolerance)
    right = (S[:, None] * torch.from_numpy(P if wide else P.T)).numpy()
    if long.shape[0] < long.shape[1]:
        P, smallest_long = whiten(long.numpy().T, parameters.tolerance)
        merged = P.T @ right
    else:
        merged, smallest_long = whiten_and_apply(long.numpy(), right, parameters.tolerance)
    smallest = min(smallest_short, smallest_long)
    if smallest < parameters.tolerance:
        tasks = ", ".join(repr(one.task) for one in factors)
        warnings.warn(
            f"{factors[0].key}: tasks {tasks} share directions (smallest singular value of their concatenated vectors "
            f"{smallest:.1e}); shared directions are counted once.",
            TSVWarning,
            stacklevel=3,
        )
    return torch.from_numpy(merged)


def _concatenated(factors: list[Factors]) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, Σk), S (Σk), Vh (Σk, n) of all tasks, without triplets that do not exist."""
    kept = [int((one.S > 0).sum()) if one.mode != "reference" else one.rank for one in factors]
    U = torch.cat([one.U[:, :k] for one, k in zip(factors, kept, strict=True)], dim=1)
    S = torch.cat([one.S[:k] for one, k in zip(factors, kept, strict=True)])
    Vh = torch.cat([one.Vh[:k] for one, k in zip(factors, kept, strict=True)])
    return U, S, Vh


def _svd_polar(matrix: Tensor) -> Tensor:
    P, _, Qh = torch.linalg.svd(matrix, full_matrices=False)
    return P @ Qh
