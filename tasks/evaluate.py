"""Accuracies of candidates, cached by what was evaluated on what."""

from __future__ import annotations

import time
from functools import cache

from tsvlib.alpha import search_alpha
from tsvlib.candidate import Candidate, fine_tuned, from_file, zero_shot
from tsvlib.checkpoint import open_checkpoint
from tsvlib.evaluate import Evaluator
from tsvlib.suite import Suite

from .blob import Blob
from .caching import cached_task
from .models import Accuracies, Alpha

EVALUATION = (
    "tsvlib.evaluate", "tsvlib.clip", "tsvlib.head", "tsvlib.images", "tsvlib.candidate", "tsvlib.archive",
    "tsvlib.checkpoint",
)  # fmt: skip


@cache
def _evaluator(suite: str, folder: str, split: str) -> Evaluator:
    """One a process, so that images are decoded once for all candidates."""
    return Evaluator(Suite.model_validate_json(suite).at(folder), split)


def _evaluate(suite: Suite, candidate: Candidate, split: str) -> Accuracies:
    start = time.perf_counter()
    accuracies = _evaluator(suite.model_dump_json(), str(suite.folder), split).accuracies(candidate.weights_of)
    return Accuracies(accuracies=accuracies, seconds=time.perf_counter() - start)


@cached_task(*EVALUATION)
def evaluate_file(
    suite: Suite, file: Blob, base: Blob, model: list[Blob], images: list[Blob], split: str
) -> Accuracies:
    """Evaluate a merged checkpoint, or an archive read as each task in turn."""
    return _evaluate(suite, from_file(file.path, suite), split)


@cached_task(*EVALUATION)
def evaluate_zero_shot(suite: Suite, base: Blob, model: list[Blob], images: list[Blob], split: str) -> Accuracies:
    """Evaluate the base itself."""
    return _evaluate(suite, zero_shot(suite), split)


@cached_task(*EVALUATION)
def evaluate_fine_tuned(
    suite: Suite, checkpoints: dict[str, Blob], model: list[Blob], images: list[Blob], split: str
) -> Accuracies:
    """Evaluate each fine-tune on its own task: the reference of normalised accuracy."""
    return _evaluate(suite, fine_tuned(suite), split)


@cached_task(*EVALUATION, "tsvlib.alpha")
def choose_alpha(suite: Suite, merged: Blob, base: Blob, model: list[Blob], images: list[Blob]) -> Alpha:
    """Search alpha on the validation images; ``merged`` was made with alpha 1."""
    start = time.perf_counter()
    evaluator = _evaluator(suite.model_dump_json(), str(suite.folder), "validation")
    alpha, curve = search_alpha(evaluator, open_checkpoint(base.path), open_checkpoint(merged.path))
    return Alpha(alpha=alpha, curve=curve, seconds=time.perf_counter() - start)
