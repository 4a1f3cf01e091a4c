"""Images decoded and preprocessed once, for work that comes back to them."""

from __future__ import annotations

import torch
from torch import Tensor

from .images import Batch, LabelledImages, Preprocess

HELD_BYTES = 2**28


class PreprocessedImages:
    """Images of a split, held once they have been read, as long as they fit a bound.

    Args:
        images: to read.
        preprocess: from an image to a float tensor (channels, height, width).
        most_bytes: to hold; what goes beyond is decoded each time.
    """

    def __init__(self, images: LabelledImages, preprocess: Preprocess, most_bytes: int = HELD_BYTES) -> None:
        self._images = images
        self._preprocess = preprocess
        self._room = most_bytes
        self._held: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows: Tensor) -> Batch:
        """The same as :meth:`LabelledImages.read`."""
        asked = rows.tolist()
        fresh = self._images.read(torch.tensor([row for row in asked if row not in self._held]), self._preprocess)
        found = dict(zip(fresh.rows.tolist(), fresh.images, strict=True))
        kept = [row for row in asked if row in self._held or row in found]
        pictures = [self._held[row] if row in self._held else found[row] for row in kept]
        for row, picture in found.items():
            if picture.nbytes <= self._room:
                self._held[row] = picture.clone()  # a row of a batch would keep the whole batch
                self._room -= picture.nbytes
        where = torch.tensor(kept, dtype=torch.long)
        return Batch(torch.stack(pictures) if pictures else torch.empty(0), self._images.labels[where], where)
