"""Synthetic image encoders: the shapes of CLIP's towers, with deltas whose spectra fall like those of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DECAY = 1.0  # the i-th singular value falls like i^-1,
FLOOR = 0.02  # down to noise at this share of the largest
SHARED = 8  # directions that all tasks have in common
_SCALE = 1e-2


@dataclass(frozen=True)
class Tower:
    """The two-dimensional parameters of an image encoder."""

    width: int
    tokens: int
    embedding: int
    blocks: int

    def shapes(self, blocks: int | None = None) -> dict[str, tuple[int, int]]:
        """Name -> shape of every matrix, of this many of the blocks."""
        d = self.width
        shapes = {"positional_embedding": (self.tokens, d), "proj": (d, self.embedding)}
        for block in range(self.blocks if blocks is None else blocks):
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * d, d),
                f"{block}.attn.out_proj.weight": (d, d),
                f"{block}.mlp.c_fc.weight": (4 * d, d),
                f"{block}.mlp.c_proj.weight": (d, 4 * d),
            }
        return shapes


TOWERS = {
    "ViT-B-32": Tower(width=768, tokens=50, embedding=512, blocks=12),
    "ViT-B-16": Tower(width=768, tokens=197, embedding=512, blocks=12),
    "ViT-L-14": Tower(width=1024, tokens=257, embedding=768, blocks=24),
}


def task_deltas(shape: tuple[int, int], tasks: int, seed: int) -> list[Tensor]:
    """Float32 task matrices: a falling spectrum over a noise floor, a few directions shared by all tasks."""
    generator = torch.Generator().manual_seed(seed)
    shared = _gaussian(shape, min(SHARED, *shape), generator)
    return [_delta(shape, shared, generator) for _ in range(tasks)]


def _gaussian(shape: tuple[int, int], rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    m, n = shape
    return torch.randn(m, rank, generator=generator) / m**0.5, torch.randn(rank, n, generator=generator) / n**0.5


def _delta(shape: tuple[int, int], shared: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    m, n = shape
    rank = min(m, n)
    left, right = _gaussian(shape, rank, generator)
    common_left, common_right = shared
    left[:, : common_left.shape[1]] += common_left
    right[: common_right.shape[0]] += common_right
    spectrum = torch.arange(1, rank + 1) ** -DECAY
    noise = torch.randn(m, n, generator=generator) / (m**0.5 + n**0.5)
    return _SCALE * ((left * spectrum) @ right + FLOOR * noise)
