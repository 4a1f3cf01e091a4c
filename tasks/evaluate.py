"""Answers of candidates to a suite's images, cached by what was evaluated on what."""

from __future__ import annotations

import threading
import time
from functools import cache, partial
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tsvlib.alpha import search
from tsvlib.answers import Answers
from tsvlib.cache import default_cache
from tsvlib.candidate import Candidate, fine_tuned, from_file, zero_shot
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.evaluate import Evaluator
from tsvlib.merging import merge
from tsvlib.protocol import note_version
from tsvlib.suite import Suite

from .blob import Blob, new_file
from .caching import cached_task
from .merge import NUMERICS
from .models import Answered, Chosen

EVALUATION = (
    "tsvlib.evaluate", "tsvlib.clip", "tsvlib.head", "tsvlib.images", "tsvlib.data", "tsvlib.decoded",
    "tsvlib.candidate", "tsvlib.archive", "tsvlib.checkpoint",
)  # fmt: skip

_one_at_a_time = threading.Lock()  # threads of one worker share the evaluator, which holds one model


@cache
def _evaluator(suite: str, folder: str, split: str) -> Evaluator:
    """One a process, so that images are decoded once for all candidates."""
    return Evaluator(Suite.model_validate_json(suite).at(folder), split, cache=default_cache())


def _evaluate(suite: Suite, candidate: Candidate, split: str) -> Answered:
    start = time.perf_counter()
    with _one_at_a_time:
        evaluator = _evaluator(suite.model_dump_json(), str(suite.folder), split)
        answers = evaluator.answers([candidate])[candidate.name]
    if split == "test":
        note_version(evaluator.cache, suite, candidate)
    tensors = {f"answers/{task}": one for task, one in answers.items()}
    tensors |= {f"labels/{task}": one for task, one in evaluator.labels.items()}
    small = {name: np.ascontiguousarray(one, dtype=np.int32) for name, one in tensors.items()}
    return Answered(answers=new_file(partial(save_file, small)), seconds=time.perf_counter() - start)


def read_answers(answered: Answered) -> tuple[Answers, Answers]:
    """The answers, and the labels, by task."""
    tensors = load_file(answered.answers.path)

    def named(prefix: str) -> Answers:
        return {
            name.removeprefix(prefix): one.astype(np.int64) for name, one in tensors.items() if name.startswith(prefix)
        }

    return named("answers/"), named("labels/")


@cached_task(*EVALUATION)
def evaluate_file(
    suite: Suite, name: str, file: Blob, base: Blob, model: list[Blob], images: list[Blob], split: str
) -> Answered:
    """Evaluate a merged checkpoint, or an archive read as each task in turn."""
    return _evaluate(suite, from_file(file.path, suite, name), split)


@cached_task(*EVALUATION)
def evaluate_zero_shot(suite: Suite, base: Blob, model: list[Blob], images: list[Blob], split: str) -> Answered:
    """Evaluate the base itself."""
    return _evaluate(suite, zero_shot(suite), split)


@cached_task(*EVALUATION)
def evaluate_fine_tuned(
    suite: Suite, checkpoints: dict[str, Blob], model: list[Blob], images: list[Blob], split: str
) -> Answered:
    """Evaluate each fine-tune on its own task: the reference of normalised accuracy."""
    return _evaluate(suite, fine_tuned(suite), split)


@cached_task(*EVALUATION, *NUMERICS, "tsvlib.alpha")
def choose_parameters(
    suite: Suite,
    method: str,
    parameters: dict[str, Any],
    base: Blob,
    tasks: dict[str, Blob],
    model: list[Blob],
    images: list[Blob],
) -> Chosen:
    """Search what is to be searched of a method's parameters on the validation images."""
    start, kept = time.perf_counter(), default_cache()
    start_from = open_checkpoint(base.path)
    opened = {name: open_checkpoint(blob.path) for name, blob in tasks.items()}

    def merged(values: dict[str, Any]) -> Checkpoint:
        return merge(start_from, opened, method, key_policy=suite.key_policy, cache=kept, **values)

    with _one_at_a_time:
        evaluator = _evaluator(suite.model_dump_json(), str(suite.folder), "validation")
        found = search(evaluator, start_from, merged, method, parameters, len(tasks))
    return Chosen(parameters=found.parameters, alpha_curve=found.alpha_curve, seconds=time.perf_counter() - start)
