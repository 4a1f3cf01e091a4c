"""Keeping what the base makes of other images while it is fine-tuned, so that fine-tunes disturb each other less."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip import Clip
from .held import HeldTensors
from .images import LabelledImages
from .preprocessed import PreprocessedImages


class Distillation:
    """How far an encoder's features of other images are from the base's.

    One serves all fine-tunes of a base: what was decoded, and what the base made of it, is held within bounds.

    Args:
        clip: holds the base's weights; copied.
        images: anything else than the task's; their labels are not used.
    """

    def __init__(self, clip: Clip, images: LabelledImages) -> None:
        self._base = copy.deepcopy(clip.model.visual).requires_grad_(False)
        self._images = PreprocessedImages(images, clip.preprocess)
        self._features = HeldTensors()

    def __len__(self) -> int:
        return len(self._images)

    def loss(self, encoder: nn.Module, rows: Tensor) -> Tensor:
        """Scalar: 1 - cosine between the encoder's and the base's features, mean over some of the images."""
        pictures = self._images.read(rows).images
        asked = tuple(rows.tolist())
        if (kept := self._features.get(asked)) is None:
            with torch.no_grad():
                kept = F.normalize(self._base(pictures), dim=-1)
            self._features.hold(asked, kept)
        return (1 - (F.normalize(encoder(pictures), dim=-1) * kept).sum(-1)).mean()
