"""Answers of image encoders to the images of a suite, several candidates in one pass over the data."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .answers import NO_ANSWER, Answers
from .cache import Cache, Entry
from .candidate import Candidate
from .clip import Clip, load_clip
from .decoded import DECODED_BYTES, Batch, DecodedImages
from .errors import DataError, SettingError
from .head import kept_head
from .images import LabelledImages
from .parallel import in_parallel
from .progress import Progress
from .store import digest_of
from .suite import Suite
from .versions import arithmetic, source_digest

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CODE = ("tsvlib.evaluate", "tsvlib.clip", "tsvlib.decoded", "tsvlib.images", "tsvlib.data", "tsvlib.archive",
         "tsvlib.names")  # fmt: skip

WeightsOf = Callable[[str], Mapping[str, Tensor]]
"""Gives the encoder weights to use for a task."""


@dataclass(frozen=True)
class Computing:
    """Where encoders run, and in what precision.

    On an accelerator, half precision is autocast. On the CPU, where autocast is slow, weights are rounded instead.

    Args:
        device: a torch device; ``auto`` takes a GPU where there is one.
        precision: by default fp32 on the CPU, bf16 on a GPU (fp16 where it has no bf16).
    """

    device: str = "auto"
    precision: Precision | None = None

    @cached_property
    def on(self) -> torch.device:
        """The device.

        Raises:
            SettingError: it is not there.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise SettingError(f"device = {self.device!r}: not available here ({reason}).") from error
        return device

    @cached_property
    def used(self) -> Precision:
        """The precision.

        Raises:
            SettingError: there is no such precision.
        """
        if self.precision is not None:
            if self.precision not in _DTYPES:
                raise SettingError(f"precision = {self.precision!r}: choose one of {', '.join(_DTYPES)}.")
            return self.precision
        if self.on.type == "cpu":
            return "fp32"
        return "bf16" if self.on.type != "cuda" or torch.cuda.is_bf16_supported() else "fp16"

    def prepare(self, clip: Clip) -> Clip:
        """Move a model there, in place."""
        clip.model.to(self.on)
        if self.on.type == "cpu":
            clip.model.visual.to(_DTYPES[self.used])
        else:
            clip.model.visual.to(memory_format=torch.channels_last)
        return clip

    def normalised_features(self, clip: Clip, pixels: Tensor) -> Tensor:
        """Unit image features, float32 (images, embedding), from pixels as ``Clip.pixel_steps`` keeps them."""
        _, to_floats = clip.pixel_steps
        dtype = _DTYPES[self.used]
        if self.on.type == "cpu":
            return F.normalize(clip.model.visual(to_floats(pixels).to(dtype)).float(), dim=-1)
        half = self.used != "fp32"
        with torch.autocast(self.on.type, dtype) if half else nullcontext():
            images = to_floats(pixels.to(self.on, non_blocking=True)).contiguous(memory_format=torch.channels_last)
            return F.normalize(clip.model.visual(images).float(), dim=-1)


class Evaluator:
    """Evaluates encoders on one split of a suite; one model is updated in place, images are decoded once.

    Args:
        suite: what to evaluate on.
        split: ``validation`` for choosing anything, ``test`` once a candidate is fixed.
        computing: where, and in what precision.
        cache: keeps heads and answers by content; None keeps nothing.
        decoded_bytes: of decoded images in memory at a time; see :class:`tsvlib.decoded.DecodedImages`.
    """

    def __init__(
        self,
        suite: Suite,
        split: str,
        computing: Computing | None = None,
        cache: Cache | None = None,
        decoded_bytes: int = DECODED_BYTES,
    ) -> None:
        self.suite = suite
        self.split = split
        self.computing = computing or Computing("cpu")
        self.cache = cache
        self._decoded_bytes = decoded_bytes
        self._heads: dict[str, tuple[Tensor, str]] = {}

    @cached_property
    def clip(self) -> Clip:
        """The model; its image encoder is that of the candidate evaluated last."""
        return self.computing.prepare(load_clip(self.suite.clip_model, self.suite.clip_weights))

    @cached_property
    def images(self) -> dict[str, LabelledImages]:
        """The images of every task, read as they are needed."""
        return {task: self.suite.images(task, self.split) for task in self.suite.tasks}

    @cached_property
    def labels(self) -> Answers:
        """The true classes."""
        return {task: images.labels.numpy() for task, images in self.images.items()}

    def on_split(self, split: str) -> Evaluator:
        """The same on another split; model and heads are shared."""
        other = Evaluator(self.suite, split, self.computing, self.cache, self._decoded_bytes)
        other.clip, other._heads = self.clip, self._heads
        return other

    def answers(self, candidates: Sequence[Candidate], progress: Progress | None = None) -> dict[str, Answers]:
        """The answers of every candidate; what the cache has is not computed again.

        Args:
            candidates: of distinct names.
            progress: called with (candidate and task, images done, images to do), over all candidates.
        """
        self._probe()
        keys = {(one.name, task): self._key(one, task) for one in candidates for task in self.suite.tasks}
        found = {place: self._kept(key) for place, key in keys.items()}
        todo = {place for place, answers in found.items() if answers is None}
        for place, answers in self._computed(candidates, todo, progress):
            found[place] = answers
            self._keep(keys[place], answers)
        return {one.name: {task: found[one.name, task] for task in self.suite.tasks} for one in candidates}  # type: ignore[misc]

    def accuracies(self, weights_of: WeightsOf, progress: Progress | None = None) -> dict[str, float]:
        """Accuracy (0 to 1) on every task of the suite."""
        return self.accuracies_of([Candidate("candidate", weights_of)], progress)["candidate"]

    def accuracies_of(
        self, candidates: Sequence[Candidate], progress: Progress | None = None
    ) -> dict[str, dict[str, float]]:
        """Accuracy (0 to 1) of every candidate on every task, in one pass over the data."""
        answers = self.answers(candidates, progress)
        return {
            name: {task: self._accuracy(task, one) for task, one in found.items()} for name, found in answers.items()
        }

    def _accuracy(self, task: str, answers: NDArray[np.int64]) -> float:
        answered = answers != NO_ANSWER
        return float((answers == self.labels[task])[answered].mean())

    def _computed(
        self, candidates: Sequence[Candidate], todo: set[tuple[str, str]], progress: Progress | None
    ) -> Iterator[tuple[tuple[str, str], NDArray[np.int64]]]:
        """Answers as they are complete, group by group of images and within it candidate by candidate."""
        if not todo:
            return
        tasks = [task for task in self.suite.tasks if any((one.name, task) in todo for one in candidates)]
        collected = {(name, task): np.full(len(self.images[task]), NO_ANSWER, dtype=np.int64) for name, task in todo}
        left = {place: len(answers) for place, answers in collected.items()}
        done, total = 0, sum(left.values())
        for group in self._decoded.groups(tasks):
            for candidate in candidates:
                wanted = [batch for batch in group if (candidate.name, batch.task) in todo]
                for batch, found in self._in_order(candidate, wanted):
                    place = (candidate.name, batch.task)
                    collected[place][batch.rows.numpy()] = found
                    left[place] -= batch.size
                    done += batch.size
                    if progress:
                        progress(f"{candidate.name} {batch.task}", done, total)
                    if not left[place]:
                        yield place, collected.pop(place)

    def _in_order(self, candidate: Candidate, batches: list[Batch]) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """The candidate's answers to some batches of images; its weights are loaded when they change."""
        weights = {task: candidate.weights_of(task) for task in dict.fromkeys(batch.task for batch in batches)}
        threads = None if self.computing.on.type == "cpu" else 1
        for _, group in groupby(batches, lambda batch: id(weights[batch.task])):
            mine = list(group)
            self.clip.load_encoder(weights[mine[0].task])
            yield from in_parallel(self._answer, mine, threads)

    def _answer(self, batch: Batch) -> NDArray[np.int64]:
        head, _ = self._head(batch.task)
        with torch.inference_mode():
            features = self.computing.normalised_features(self.clip, batch.pixels)
            return (features @ head.T).argmax(1).cpu().numpy()

    def _head(self, task: str) -> tuple[Tensor, str]:
        if task not in self._heads:
            classes, templates = self.suite.classes(task), self.suite.task(task).templates
            self._heads[task] = kept_head(self.clip, classes, templates, self.cache)
        return self._heads[task]

    @cached_property
    def _decoded(self) -> DecodedImages:
        to_pixels, _ = self.clip.pixel_steps
        for task in self.suite.tasks:
            self._head(task)  # before threads ask for it
        return DecodedImages(self.images, to_pixels, self._decoded_bytes)

    def _probe(self) -> None:
        for images in self.images.values():
            if not len(images):
                raise DataError(f"{images.source}: no images.")
            images.probe()

    def _key(self, candidate: Candidate, task: str) -> str | None:
        """Over all that the answers depend on; None if they are not to be kept."""
        if self.cache is None or candidate.key_of is None:
            return None
        where = [str(self.computing.on.type), self.computing.used]
        encoder = [candidate.key_of(task), self.clip.configuration]
        parts = [source_digest(_CODE), arithmetic(), *where, *encoder, self._head(task)[1], self.images[task].digest]
        return digest_of(json.dumps(parts))

    def _kept(self, key: str | None) -> NDArray[np.int64] | None:
        if self.cache is None or key is None:
            return None
        try:
            return self.cache.tensors("answers", key, _missing).tensors["answers"].long().numpy()
        except _Missing:
            return None

    def _keep(self, key: str | None, answers: NDArray[np.int64]) -> None:
        if self.cache is not None and key is not None:
            self.cache.tensors("answers", key, lambda: Entry({"answers": torch.from_numpy(answers).int()}, {}))


class _Missing(Exception):
    """The cache has no such entry."""


def _missing() -> Any:
    raise _Missing
