"""How the matrices of a task are stored: as singular triplets or densely, in few bits, with a bound on the error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import MethodError
from ..factors import Factors

ArchiveDtype = Literal["fp16", "bf16", "fp32", "int8"]

FEW_VALUES = 4096
"""What is stored densely and has no more values is packed together, in 16 bits at least."""

_ROUNDING = 2e-6  # of float32 products and sums, relative to the norm of the result
_INT8 = 127


@dataclass(frozen=True)
class Coding:
    """What numbers are stored as. Singular values and scales are float32 in each."""

    name: ArchiveDtype
    codes: torch.dtype
    """Of singular vectors and dense matrices."""
    small: torch.dtype
    """Of dense vectors and what else has few values."""

    @property
    def scaled(self) -> bool:
        """Whether every column of U and row of Vh, and every row of a dense matrix, has a scale of its own."""
        return not self.codes.is_floating_point

    def triplet_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of one singular triplet of a matrix (m, n)."""
        return sum(shape) * self.codes.itemsize + 4 * (3 if self.scaled else 1)

    def by_rows(self, shape: Sequence[int]) -> bool:
        """Whether something of this shape, stored densely, has a scale a row, and not one in all."""
        return self.scaled and len(shape) > 1 and math.prod(shape) > FEW_VALUES

    def dense_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of something of this shape, stored densely."""
        by_rows = self.by_rows(shape)
        dtype = self.codes if by_rows or not self.scaled else self.small
        return math.prod(shape) * dtype.itemsize + 4 * (shape[0] if by_rows else 1)

    def most_triplets(self, shape: Sequence[int]) -> int:
        """The largest rank that takes fewer bytes than the whole matrix; at least 0."""
        return min(min(shape), (self.dense_bytes(shape) - 1) // self.triplet_bytes(shape))


CODINGS: dict[str, Coding] = {
    "fp16": Coding("fp16", torch.float16, torch.float16),
    "bf16": Coding("bf16", torch.bfloat16, torch.bfloat16),
    "fp32": Coding("fp32", torch.float32, torch.float32),
    "int8": Coding("int8", torch.int8, torch.float16),
}


def get_coding(dtype: str) -> Coding:
    """The coding of this name.

    Raises:
        MethodError: there is none.
    """
    if dtype not in CODINGS:
        raise MethodError(f"dtype = {dtype!r}: choose one of {', '.join(CODINGS)}.")
    return CODINGS[dtype]


@dataclass(frozen=True)
class Coded:
    """One matrix, or one parameter that is no matrix, as it is stored; the norms are Frobenius norms."""

    rank: int
    """Number of singular triplets; 0: stored densely."""
    codes: tuple[Tensor, ...]
    """U (m, k) and Vh (k, n); or the whole."""
    scales: Tensor
    """Float32: S (k), with int8 also the scales of U (k) and of Vh (k); of the whole, one or one a row."""
    truncation: float
    """Norm of what the left-out triplets hold."""
    quantisation: float
    """Bound on the norm of what the dtype of the codes and the arithmetic change further."""

    @property
    def is_packed(self) -> bool:
        """Whether it goes among the packed ones."""
        return not self.rank and self.codes[0].numel() <= FEW_VALUES

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (*self.codes, self.scales))


def code_factors(factors: Factors, delta: Tensor, coding: Coding) -> Coded:
    """Store a matrix as its factors.

    Args:
        factors: of rank k; triplets that do not exist (S = 0) are left out.
        delta: the matrix itself (m, n), to measure the truncation.
    """
    k = max(1, int((factors.S > 0).sum()))
    U, S, Vh = factors.U[:, :k].float(), factors.S[:k].float(), factors.Vh[:k].float()
    truncation = float(torch.linalg.vector_norm((delta - (U * S) @ Vh).double()))
    (left, left_scales), (right, right_scales) = _coded_vectors(U.T, coding), _coded_vectors(Vh, coding)
    left_error, right_error = _decoded(left, left_scales) - U.T, _decoded(right, right_scales) - Vh
    norm = torch.linalg.vector_norm
    quantisation = float(
        norm(left_error * S[:, None]) + (1 + norm(left_error)) * norm(right_error * S[:, None]) + _ROUNDING * norm(S)
    )
    scales = torch.cat([S, left_scales, right_scales]) if coding.scaled else S.contiguous()
    return Coded(k, (left.T.contiguous(), right), scales, _up(truncation), _up(quantisation))


def code_dense(delta: Tensor, coding: Coding) -> Coded:
    """Store all values of a delta of any shape."""
    if coding.by_rows(delta.shape):
        rows = delta.float().reshape(delta.shape[0], -1)
        codes, scales = _coded_vectors(rows, coding)
    else:
        rows = delta.float().reshape(1, -1)
        scales = _power_of_two(rows)
        codes = (rows / scales).to(coding.small if coding.scaled else coding.codes)
    error = torch.linalg.vector_norm((_decoded(codes, scales) - rows).double())
    return Coded(0, (codes.reshape(delta.shape),), scales, 0.0, _up(float(error)))


def decode_dense(codes: Tensor, scales: Tensor) -> Tensor:
    """The values, float32, in the shape of the codes."""
    if len(scales) == 1:
        return codes.float() * scales
    return codes.float() * scales.reshape(-1, *[1] * (codes.ndim - 1))


def decode_factors(rank: int, codes: Sequence[Tensor], scales: Tensor) -> Factors:
    """U (m, k), S (k), Vh (k, n) in float32; orthonormal up to the rounding of the codes."""
    U, Vh, S = codes[0].float(), codes[1].float(), scales[:rank]
    if len(scales) > rank:
        U, Vh = U * scales[rank : 2 * rank], Vh * scales[2 * rank :, None]
    return Factors(U, S, Vh)


def add_factors(target: Tensor, rank: int, codes: Sequence[Tensor], scales: Tensor) -> None:
    """Add U · diag(S) · Vh to a float32 matrix (m, n), in place; scales are joined, so nothing is multiplied twice."""
    weights = scales[:rank] * scales[rank : 2 * rank] * scales[2 * rank :] if len(scales) > rank else scales
    U, Vh = codes[0].float(), codes[1].float()
    target.addmm_(U.mul_(weights) if U is not codes[0] else U * weights, Vh)


def _coded_vectors(rows: Tensor, coding: Coding) -> tuple[Tensor, Tensor]:
    """Codes of the same shape, and a scale for each row with int8, else one, which is 1: entries are at most that."""
    if not coding.scaled:
        return rows.to(coding.codes), torch.ones(1)
    scales = rows.abs().amax(dim=1) / _INT8
    usable = torch.where(scales > 0, scales, 1.0)
    return (rows / usable[:, None]).round().to(coding.codes), scales


def _power_of_two(values: Tensor) -> Tensor:
    """The one (1) that brings the largest value near 1, so that half precision neither overflows nor loses digits."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    return torch.tensor([2.0 ** max(-120, min(120, math.frexp(largest)[1]))])


def _decoded(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.float() * (scales[:, None] if len(scales) > 1 else scales)


def _up(value: float) -> float:
    """To four digits, upwards, so that the header is short and the bound holds."""
    return float(f"{value * 1.001:.3e}")
