"""Which task an image is of, told by a router from what the base makes of it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..clip import ENCODER_PREFIX
from ..routing import DiscriminantRouter, Router, layer_inputs


class TaskChoice:
    """Images in, tasks out; several threads may ask.

    Args:
        router: of the archive's tasks.
        encoder: with the base's weights, and of no other use: reading its layer hangs a hook on it.
    """

    def __init__(self, router: Router, encoder: nn.Module) -> None:
        self._router, self._encoder = router, encoder
        self._one_at_a_time = threading.Lock()

    @classmethod
    def of(cls, file: Path, bare: nn.Module, base: Mapping[str, Tensor]) -> TaskChoice:
        """From what ``tsv route --save`` wrote, and the weights of the base, which are not copied.

        Raises:
            ArchiveError: the file holds no router.
        """
        weights = {key.removeprefix(ENCODER_PREFIX): value for key, value in base.items()}
        encoder = copy.deepcopy(bare)
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()}, assign=True)
        return cls(DiscriminantRouter.load(file), encoder.eval())

    def __call__(self, images: Tensor) -> list[str]:
        """The likeliest task of each image (n, channels, height, width), preprocessed."""
        with self._one_at_a_time:
            activations = layer_inputs(self._encoder, self._router.layer, [images])
        return [self._router.tasks[best] for best in self._router.scores(activations).argmax(1).tolist()]
