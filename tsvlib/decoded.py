"""Images decoded once for all candidates, kept as bytes of pixels within a bound.

Where all images of an evaluation fit the bound, they are decoded once and stay. Where they do not, each pass over them
decodes a group that fits, hands it out, and lets it go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL.Image import Image
from torch import Tensor

from .images import LabelledImages
from .parallel import in_parallel

DECODED_BYTES = 2**31
BATCH = 128


@dataclass(frozen=True)
class Batch:
    """Decoded images of one task."""

    task: str
    pixels: Tensor
    """(images, channels, height, width), uint8 where preprocessing allows."""
    rows: Tensor
    """Which images of the split these are, int64 (images,); those that cannot be decoded are left out."""
    size: int
    """How many images were to be decoded."""


class DecodedImages:
    """The images of several tasks in groups of batches, each group within a bound.

    Args:
        images: of each task.
        decode: from an image to pixels.
        most_bytes: of decoded images at a time.
        threads: that decode; one per core by default.
    """

    def __init__(
        self,
        images: Mapping[str, LabelledImages],
        decode: Callable[[Image], Tensor],
        most_bytes: int = DECODED_BYTES,
        threads: int | None = None,
    ) -> None:
        self.images = images
        self._decode = decode
        self._most_bytes = most_bytes
        self._threads = threads
        self._kept: dict[str, list[Batch]] = {}

    def groups(self, tasks: list[str]) -> Iterator[list[Batch]]:
        """All batches of some tasks, in order, as groups that fit the bound; one group if everything fits."""
        if self._everything_fits:
            for task in tasks:
                if task not in self._kept:
                    self._kept[task] = list(self._decoded([task]))
            yield [batch for task in tasks for batch in self._kept[task]]
            return
        group: list[Batch] = []
        held = 0
        for batch in self._decoded(tasks):
            if group and held + batch.pixels.nbytes > self._most_bytes:
                yield group
                group, held = [], 0
            group.append(batch)
            held += batch.pixels.nbytes
        if group:
            yield group

    def _decoded(self, tasks: list[str]) -> Iterator[Batch]:
        """On threads; while the consumer works on some batches, the next few are decoded."""

        def work(part: tuple[str, Tensor]) -> Batch:
            task, rows = part
            read = self.images[task].read(rows, self._decode)
            return Batch(task, read.images, read.rows, len(rows))

        parts = [(task, rows) for task in tasks for rows in torch.arange(len(self.images[task])).split(BATCH)]
        for _, batch in in_parallel(work, parts, self._threads):
            yield batch

    @cached_property
    def _everything_fits(self) -> bool:
        """Judged by the first image; all have its size once they are cropped."""
        first = next((images for images in self.images.values() if len(images)), None)
        if first is None:
            return True
        bytes_each = first.read(torch.arange(min(BATCH, len(first))), self._decode).images[0].nbytes
        return bytes_each * sum(len(images) for images in self.images.values()) <= self._most_bytes
