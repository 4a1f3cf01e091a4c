"""Accuracy of image encoders on the tasks of a suite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip import Clip, load_clip
from .errors import DataError
from .head import zero_shot_head
from .parallel import in_parallel
from .progress import Progress
from .suite import Suite

log = logging.getLogger(__name__)

BATCH = 128

# gives the encoder weights to use for a task; the same for all tasks unless the candidate is task-conditional
WeightsOf = Callable[[str], Mapping[str, Tensor]]


class Evaluator:
    """Evaluates encoders on one split of a suite; model, heads and decoded images are made once and reused.

    Args:
        suite: what to evaluate on.
        split: ``validation`` for choosing anything, ``test`` once a candidate is fixed.
    """

    def __init__(self, suite: Suite, split: str) -> None:
        self.suite = suite
        self.split = split
        self._images: dict[str, tuple[Tensor, Tensor]] = {}
        self._heads: dict[str, Tensor] = {}

    @cached_property
    def clip(self) -> Clip:
        return load_clip(self.suite.clip_model, self.suite.clip_weights)

    def accuracy(self, task: str, weights: Mapping[str, Tensor] | None = None) -> float:
        """Share of images (0 to 1) whose own class scores highest.

        Args:
            task: a task of the suite.
            weights: the encoder to load first; None evaluates the one that is loaded.
        """
        if weights is not None:
            self.clip.load_encoder(weights)
        images, labels = self._task_images(task)
        head = self._head(task)

        def correct(rows: slice) -> int:
            with torch.inference_mode():
                features = F.normalize(self.clip.model.visual(images[rows]), dim=-1)
                return int(((features @ head.T).argmax(1) == labels[rows]).sum())

        batches = [slice(start, start + BATCH) for start in range(0, len(labels), BATCH)]
        return sum(count for _, count in in_parallel(correct, batches)) / len(labels)

    def accuracies(self, weights_of: WeightsOf, progress: Progress | None = None) -> dict[str, float]:
        """Accuracy on every task of the suite."""
        result: dict[str, float] = {}
        loaded = None
        for i, task in enumerate(self.suite.tasks):
            weights = weights_of(task)
            result[task] = self.accuracy(task, None if weights is loaded else weights)
            loaded = weights
            if progress:
                progress(task, i + 1, len(self.suite.tasks))
        return result

    def _head(self, task: str) -> Tensor:
        if task not in self._heads:
            self._heads[task] = zero_shot_head(self.clip, self.suite.classes(task), self.suite.task(task).templates)
        return self._heads[task]

    def _task_images(self, task: str) -> tuple[Tensor, Tensor]:
        if task not in self._images:
            images = self.suite.images(task, self.split)
            self._images[task] = images.read(torch.arange(len(images)), self.clip.preprocess)[:2]
        return self._images[task]


def normalised(accuracies: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """Each accuracy over the fine-tuned model's own (Gargiulo et al. 2025, Eq. 9 before averaging).

    Raises:
        DataError: a fine-tuned model gets no image right, so that nothing can be measured against it.
    """
    for task, accuracy in reference.items():
        if accuracy == 0:
            raise DataError(
                f"task {task!r}: the fine-tuned model gets no image right, so normalised accuracy is undefined. "
                "Check that the suite names the task's own checkpoint, and its classes in label order."
            )
    return {task: accuracy / reference[task] for task, accuracy in accuracies.items()}


def mean(values: Mapping[str, float]) -> float:
    """Plain mean over tasks. Of normalised accuracies: the mean of ratios, not the ratio of means."""
    return sum(values.values()) / len(values)
