"""Tensors held within a bound, for work that comes back to them."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

HELD_BYTES = 2**28


class HeldTensors:
    """Tensors by key, as long as they fit; what comes when the bound is reached is not held.

    Args:
        most_bytes: to hold.
    """

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self._room = most_bytes
        self._held: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable) -> Tensor | None:
        """What is held under a key."""
        return self._held.get(key)

    def hold(self, key: Hashable, tensor: Tensor) -> None:
        """Hold a copy of a tensor, if there is room."""
        if key not in self._held and tensor.nbytes <= self._room:
            self._held[key] = tensor.clone()  # a row of a batch would keep the whole batch
            self._room -= tensor.nbytes
