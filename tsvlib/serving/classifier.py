"""From encoded images to class probabilities, for one task or all of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from ..archive import open_archive
from ..checkpoint import Checkpoint, open_checkpoint
from ..clip import bare_encoder
from ..data.decoding import UnreadableImage, decode_image
from ..errors import CheckpointError, DataError, did_you_mean
from ..images import Preprocess
from ..parallel import single_threaded_blas
from .encoders import EncoderPool
from .task_choice import TaskChoice

ENCODER_BYTES = 2**31
"""Of the encoders of an archive in memory, unless the caller says otherwise."""
BATCH = 32
DESCRIPTION, WEIGHTS, BASE, HEADS = "classifier.json", "model.safetensors", "base.safetensors", "heads.safetensors"
ROUTER = "router.safetensors"

Kind = Literal["merged", "archive"]


class Description(BaseModel):
    """What ``classifier.json`` says of the files beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Literal[1] = 1
    kind: Kind
    name: str
    """Of the candidate."""
    suite: str
    digest: str
    """Of the candidate's weights."""
    base_digest: str
    classes: dict[str, list[str]]
    """Task -> class names, in the order of the head's rows."""
    config: dict[str, Any]
    """open_clip's, of the model and its preprocessing."""


class Question(NamedTuple):
    """One image, and the task that it is of; None: every task, of an archive the one that its router takes it for."""

    image: bytes
    task: str | None = None


@dataclass(frozen=True)
class Answer:
    """Probabilities of the classes of one task."""

    task: str
    classes: list[str]
    probabilities: Tensor
    """Float32 (classes,), summing to 1."""

    @property
    def best(self) -> tuple[str, float]:
        """The likeliest class and its probability."""
        return next(iter(self.top(1).items()))

    def top(self, count: int) -> dict[str, float]:
        """The likeliest classes, first first."""
        values, places = self.probabilities.topk(min(count, len(self.classes)))
        return {self.classes[place]: value for place, value in zip(places.tolist(), values.tolist(), strict=True)}


class Classifier:
    """Answers questions about images. Several threads may ask at once; each core works on one batch at a time.

    Args:
        description: of the tasks.
        heads: task -> class vectors times the logit scale, float32 (classes, embedding).
        preprocess: from an image to the encoder's input.
        encoders: the encoder of every task (of a merged model, one under the empty name).
        task_choice: of an archive: tells the task of an image that is asked about without one.
    """

    def __init__(
        self,
        description: Description,
        heads: Mapping[str, Tensor],
        preprocess: Preprocess,
        encoders: EncoderPool,
        task_choice: TaskChoice | None = None,
    ) -> None:
        self.description = description
        self.encoders = encoders
        self._task_choice = task_choice
        self._heads = heads
        self._preprocess = preprocess
        self._working = threading.BoundedSemaphore(len(os.sched_getaffinity(0)))

    @property
    def tasks(self) -> list[str]:
        return list(self.description.classes)

    def classify(self, questions: Sequence[Question]) -> list[list[Answer] | UnreadableImage]:
        """Answers to every question, in order; for an image that cannot be decoded, why not.

        Raises:
            DataError: a task that there is not, or none where one must be named.
        """
        questions = self._routed(questions)
        tasks = [self._asked(question.task) for question in questions]
        found: list[list[Answer] | UnreadableImage] = [[] for _ in questions]
        by_encoder: dict[str, list[int]] = {}
        for row, mine in enumerate(tasks):
            by_encoder.setdefault(self._encoder_of(mine[0]), []).append(row)
        for name, rows in by_encoder.items():
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                for row, features in self._features(name, {row: questions[row].image for row in part}):
                    found[row] = (
                        features
                        if isinstance(features, UnreadableImage)
                        else [self._answer(task, features) for task in tasks[row]]
                    )
        return found

    def _routed(self, questions: Sequence[Question]) -> list[Question]:
        """With the task of each image that names none, if there is a router; one that cannot be decoded is of any."""
        named = list(questions)
        if not self._task_choice:
            return named
        open_rows = [row for row, question in enumerate(named) if not question.task]
        for start in range(0, len(open_rows), BATCH):
            part = open_rows[start : start + BATCH]
            with self._working, single_threaded_blas(), torch.inference_mode():
                inputs, _ = self._decoded({row: named[row].image for row in part})
                chosen = self._task_choice(torch.stack(list(inputs.values()))) if inputs else []
            tasks = dict(zip(inputs, chosen, strict=True))
            for row in part:
                named[row] = Question(named[row].image, tasks.get(row, self.tasks[0]))
        return named

    def _asked(self, task: str | None) -> list[str]:
        if not task:
            if self.description.kind == "archive":
                raise DataError(
                    f"an archive answers for one task at a time; name one of {', '.join(self.tasks)}, or export it "
                    "with a router."
                )
            return self.tasks
        if task not in self.description.classes:
            raise DataError(f"no task {task!r}.{did_you_mean(task, self.tasks)}")
        return [task]

    def _encoder_of(self, task: str) -> str:
        return task if self.description.kind == "archive" else ""

    def _features(self, name: str, images: Mapping[int, bytes]) -> Iterator[tuple[int, Tensor | UnreadableImage]]:
        with self._working, single_threaded_blas(), torch.inference_mode():
            inputs, unreadable = self._decoded(images)
            yield from unreadable.items()
            if inputs:
                features = F.normalize(self.encoders[name](torch.stack(list(inputs.values()))), dim=-1)
                yield from zip(inputs, features, strict=True)

    def _decoded(self, images: Mapping[int, bytes]) -> tuple[dict[int, Tensor], dict[int, UnreadableImage]]:
        """The encoder's inputs, and what could not be decoded."""
        inputs: dict[int, Tensor] = {}
        unreadable: dict[int, UnreadableImage] = {}
        for row, encoded in images.items():
            try:
                inputs[row] = self._preprocess(decode_image(encoded))
            except UnreadableImage as error:
                unreadable[row] = error
        return inputs, unreadable

    def _answer(self, task: str, features: Tensor) -> Answer:
        return Answer(task, self.description.classes[task], (self._heads[task] @ features).softmax(0))


def open_classifier(folder: str | Path, most_bytes: int = ENCODER_BYTES) -> Classifier:
    """Open what :func:`tsvlib.serving.export.export_classifier` wrote.

    Args:
        folder: with ``classifier.json``, the weights and the heads.
        most_bytes: of an archive's encoders in memory; see :class:`EncoderPool`.

    Raises:
        CheckpointError: a file is missing, damaged, or of a layout that is not known.
    """
    folder = Path(folder)
    description = _read_description(folder / DESCRIPTION)
    heads = dict(open_checkpoint(folder / HEADS))
    if heads.keys() != description.classes.keys():
        raise CheckpointError(f"{folder / HEADS}: holds other tasks than {DESCRIPTION}. Export it again.")
    bare, preprocess = bare_encoder(description.config)
    weights_of, shared = _READERS[description.kind](folder)
    task_choice = TaskChoice.of(folder / ROUTER, bare, shared) if (folder / ROUTER).exists() else None
    return Classifier(description, heads, preprocess, EncoderPool(bare, weights_of, most_bytes, shared), task_choice)


def _read_description(file: Path) -> Description:
    try:
        return Description.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: no such file, so {file.parent} is no exported classifier. Make one with 'tsv export'."
        ) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{file}: is not understood ({problems}). Export it again.") from error


Weights = tuple[Callable[[str], Mapping[str, Tensor]], Mapping[str, Tensor]]


def _merged(folder: Path) -> Weights:
    weights = open_checkpoint(folder / WEIGHTS)
    return lambda name: weights, {}


def _archive(folder: Path) -> Weights:
    """The base and the archive's entries stay in memory, so that a task costs its products and no reading."""
    base = _in_memory(open_checkpoint(folder / BASE))
    archive = open_archive(folder / WEIGHTS)
    return lambda task: archive.extract(task, base), dict(base)


def _in_memory(checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint.from_tensors(dict(checkpoint), checkpoint.metadata, checkpoint.about)


_READERS: dict[Kind, Callable[[Path], Weights]] = {"merged": _merged, "archive": _archive}
