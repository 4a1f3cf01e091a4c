"""TSV-Merge: low-rank task matrices whose singular vectors are made orthogonal across tasks."""

from itertools import combinations

import torch
from pydantic import Field
from torch import Tensor

from ..factors import Factors, concatenated
from ..notices import warn
from ..polar import TOLERANCE, polar, polar_times, svd_polar
from .low_rank_sum import LowRank, rank
from .registry import MethodParameters, method

_SAME_DIRECTION = 1 - 1e-6  # cosine above which two directions are named as shared


class Decorrelation(MethodParameters):
    """The tolerance of the polar factor. The authors of svc use it with a floor of 1 on these methods."""

    svc_floor: float | None = Field(1.0, gt=0, le=1, description="least share of a task that svc assumes")
    tolerance: float = Field(TOLERANCE, ge=1e-6, lt=1, description="relative size of the directions dropped as shared")


class TSVMerge(Decorrelation, LowRank):
    """The share of the rank that each task keeps, and the tolerance of the polar factor."""


@method("tsv-m", source="Gargiulo et al. 2025, Algorithm 1", parameters=TSVMerge, rank=rank)
def tsv_merge(factors: list[Factors], parameters: Decorrelation) -> Tensor:
    """Sum of the rank-k task matrices, their singular vectors made orthogonal across tasks."""
    U, S, Vh = concatenated(factors)
    if len(S) == 0:
        return U @ Vh
    if factors[0].mode == "reference":
        return (svd_polar(U) * S) @ svd_polar(Vh)
    if U.shape[0] < Vh.shape[1]:
        return _decorrelated(Vh.T, S, U, factors, parameters.tolerance).T
    return _decorrelated(U, S, Vh.T, factors, parameters.tolerance)


def _decorrelated(long: Tensor, S: Tensor, short: Tensor, factors: list[Factors], tolerance: float) -> Tensor:
    """polar(long) · diag(S) · polar(short)ᵀ."""
    P, smallest_short = polar(short, tolerance)
    merged, smallest_long = polar_times(long, S[:, None] * P.T, tolerance)
    smallest = min(smallest_short, smallest_long)
    if smallest < tolerance:
        tasks = ", ".join(repr(task) for task in _overlapping(factors))
        warn(
            f"{factors[0].key}: tasks {tasks} share directions (smallest singular value of their concatenated vectors "
            f"{smallest:.1e} of the largest); each shared direction counts once."
        )
    return merged


def _overlapping(factors: list[Factors]) -> list[str]:
    """The tasks that have a direction in common with another one; all, where no two of them explain it."""
    found = set()
    for one, other in combinations(factors, 2):
        left, right = one.U.T @ other.U, one.Vh @ other.Vh.T
        if max(torch.linalg.matrix_norm(left, 2), torch.linalg.matrix_norm(right, 2)) > _SAME_DIRECTION:
            found |= {one.task, other.task}
    return [one.task for one in factors if one.task in found or not found]
