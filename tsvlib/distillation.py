"""Keeping what the base makes of other images while it is fine-tuned, so that fine-tunes disturb each other less."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import Clip
from .images import LabelledImages
from .preprocessed import PreprocessedImages


class Distillation:
    """How far an encoder's features of other images are from the base's.

    One serves all fine-tunes of a base: what was decoded, and what the base made of it, is held.

    Args:
        clip: holds the base's weights; copied.
        images: anything else than the task's; their labels are not used.
    """

    def __init__(self, clip: Clip, images: LabelledImages) -> None:
        self._base = copy.deepcopy(clip.model.visual).requires_grad_(False)
        self._images = PreprocessedImages(images, clip.preprocess)
        self._features: dict[tuple[int, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    def loss(self, encoder: nn.Module, rows: Tensor) -> Tensor:
        """Scalar: 1 - cosine between the encoder's and the base's features, mean over some of the images."""
        pictures = self._images.read(rows).images
        asked = tuple(rows.tolist())
        if asked not in self._features:
            with torch.no_grad():
                self._features[asked] = F.normalize(self._base(pictures), dim=-1)
        return (1 - (F.normalize(encoder(pictures), dim=-1) * self._features[asked]).sum(-1)).mean()
