"""DARE: random dropping and rescaling, merged by the sign election of TIES."""

import hashlib
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from ..tensors import tensor_bytes
from .registry import MethodParameters, method
from .ties import merged_by_sign


class DareTies(MethodParameters):
    """How much of each task survives, and the seed of the choice."""

    density: float = Field(0.5, gt=0, le=1, description="probability that an entry is kept")
    seed: int = Field(0, ge=0, description="seed of the random choice")


@method(
    "dare-ties",
    source="Yu et al. 2024 (arXiv 2311.03099), then steps 2 and 3 of Yadav et al. 2023",
    parameters=DareTies,
    others=None,
)
def dare_ties(deltas: Sequence[Tensor], parameters: DareTies) -> Tensor:
    """Random entries dropped, the rest rescaled by 1 / density, then merged by elected sign."""
    return merged_by_sign(torch.stack([_dropped(delta, parameters) for delta in deltas]))


def _dropped(delta: Tensor, parameters: DareTies) -> Tensor:
    """The choice is seeded by the delta's own values, so that it does not depend on the order of the tasks."""
    digest = hashlib.sha256(parameters.seed.to_bytes(8) + tensor_bytes(delta)).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    kept = torch.rand(delta.shape, generator=generator) < parameters.density
    return delta * kept.to(delta.device) / parameters.density
