"""Images decoded and preprocessed once, for work that comes back to them."""

from __future__ import annotations

import torch
from torch import Tensor

from .held import HELD_BYTES, HeldTensors
from .images import Batch, LabelledImages, Preprocess


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
        self._held = HeldTensors(most_bytes)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows: Tensor) -> Batch:
        """The same as :meth:`LabelledImages.read`."""
        asked = rows.tolist()
        found = {row: picture for row in asked if (picture := self._held.get(row)) is not None}
        fresh = self._images.read(torch.tensor([row for row in asked if row not in found]), self._preprocess)
        for row, picture in zip(fresh.rows.tolist(), fresh.images, strict=True):
            found[row] = picture
            self._held.hold(row, picture)
        where = torch.tensor([row for row in asked if row in found], dtype=torch.long)
        pictures = [found[row] for row in where.tolist()]
        return Batch(torch.stack(pictures) if pictures else torch.empty(0), self._images.labels[where], where)
