"""Weight averaging."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .registry import MethodParameters, mean, method


@method("average", source="Wortsman et al. 2022, model soups (uniform)", others=None)
def average(deltas: Sequence[Tensor], parameters: MethodParameters) -> Tensor:
    """Mean of the deltas."""
    return mean(deltas, parameters)
