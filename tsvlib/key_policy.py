"""Which parameters count as matrices. It changes the result of every method, so every artifact records it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class KeyPolicy(BaseModel):
    """How each parameter is seen by a method. The defaults are those of Gargiulo et al. 2025.

    A parameter is one matrix, several stacked matrices, or no matrix at all; the last kind is merged by the method's
    rule for other parameters (the mean of the deltas, for most).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    qkv: Literal["fused", "split"] = "fused"
    """``attn.in_proj_weight`` as one (3d, d) matrix, or as three (d, d) matrices."""
    conv: Literal["mean", "matrix"] = "mean"
    """Parameters with more than two dimensions as no matrix, or as (out, in · height · width)."""
    embeddings: Literal["matrix", "mean"] = "matrix"
    """Two-dimensional token and positional embeddings."""
    text_projection: Literal["matrix", "mean"] = "mean"
    """The text tower's projection, which the paper's code leaves out of merging."""

    def count(self, name: str, shape: Sequence[int]) -> int:
        """The number of matrices in a parameter of this name and shape; 0 if it is not treated as one."""
        if len(shape) < 2 or 0 in shape:
            return 0
        if len(shape) > 2:
            return int(self.conv == "matrix")
        if "text_projection" in name:
            return int(self.text_projection == "matrix")
        if "embedding" in name:
            return int(self.embeddings == "matrix")
        if name.endswith("in_proj_weight") and self.qkv == "split" and shape[0] % 3 == 0:
            return 3
        return 1

    def split(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        """The matrices (views) of a parameter, in order; empty if it is not treated as one."""
        count = self.count(name, tensor.shape)
        return tensor.reshape(tensor.shape[0], -1).chunk(count) if count else ()

    @staticmethod
    def join(matrices: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """The parameter from its matrices: the inverse of :meth:`split`."""
        return torch.cat(list(matrices)).reshape(tuple(shape))
