"""The dtypes a checkpoint may hold, the shape and dtype of one tensor, and its values as bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .errors import NumericalError

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Each supported dtype and its name in a safetensors header."""

DTYPE_OF_NAME = {name: dtype for dtype, name in DTYPE_NAMES.items()}

FloatDtype = Literal["fp16", "bf16", "fp32"]
FLOAT_DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""The dtypes that floating-point values can be written as on request, by their short names."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the values, uncompressed."""
        return self.dtype.itemsize * math.prod(self.shape)

    def as_float(self, dtype: FloatDtype | None) -> TensorSpec:
        """The same with this dtype, if it is floating-point; unchanged for None."""
        return replace(self, dtype=FLOAT_DTYPES[dtype]) if dtype and self.dtype.is_floating_point else self


def cast(tensor: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    """The values in another dtype.

    Args:
        where: how a message names the tensor.

    Raises:
        NumericalError: a value is beyond the range of a narrower floating-point dtype, and would become infinite.
    """
    floating = tensor.is_floating_point() and dtype.is_floating_point
    if floating and tensor.numel() and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        largest, bound = float(torch.stack(tensor.aminmax()).abs().max()), torch.finfo(dtype).max
        if bound < largest < math.inf:
            raise NumericalError(
                f"{where}: holds {largest:.4g}, which {DTYPE_NAMES[dtype]} cannot: its largest value is {bound:.4g}. "
                "Choose a dtype of wider range, such as bf16 or fp32."
            )
    return tensor.to(dtype)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor in C order, as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
