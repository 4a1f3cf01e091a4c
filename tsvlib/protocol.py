"""The protocol of an evaluation: what is measured on which images, and what is noted about it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from .answers import Answers
from .cache import Cache
from .candidate import FINE_TUNED, Candidate
from .decoded import DECODED_BYTES
from .errors import DataError, MismatchError
from .evaluate import Computing, Evaluator
from .predictions import Predictions
from .preflight import check_before_evaluation
from .progress import Progress
from .suite import Suite
from .test_uses import note_test_use

log = logging.getLogger(__name__)


def measure(
    suite: Suite,
    candidates: Sequence[Candidate],
    split: str = "test",
    *,
    computing: Computing | None = None,
    cache: Cache | None = None,
    decoded_bytes: int = DECODED_BYTES,
    progress: Progress | None = None,
) -> Predictions:
    """Measure candidates, the fine-tuned models among them, by the same code in one pass over the images.

    On test, the fine-tuned models are measured on validation images as well: one that does far better on test has seen
    the test images. The cache's store notes which version of each candidate was measured on test.

    Args:
        suite: what to evaluate on.
        candidates: with the references, see :func:`tsvlib.candidate.candidates`.
        split: ``test``, or ``validation`` for choosing among candidates.
        computing: where, and in what precision.
        cache: keeps heads and answers by content.
        decoded_bytes: of decoded images in memory at a time.
        progress: called with (candidate and task, images done, images to do).

    Raises:
        MismatchError: model, base and fine-tunes do not belong together.
        DataError: images are missing.
    """
    check_before_evaluation(suite)
    evaluator = Evaluator(suite, split, computing, cache, decoded_bytes)
    _check(evaluator, candidates)
    answers: dict[str, Mapping[str, Answers]] = {split: evaluator.answers(candidates, progress)}
    labels = {split: evaluator.labels}
    if split == "test":
        for candidate in candidates:
            note_version(cache, suite, candidate)
        if has_split(suite, "validation"):
            held_out = evaluator.on_split("validation")
            reference = [candidate for candidate in candidates if candidate.name == FINE_TUNED]
            answers["validation"] = held_out.answers(reference, progress)
            labels["validation"] = held_out.labels
    return gather(suite, split, labels, answers, candidates)


def _check(evaluator: Evaluator, candidates: Sequence[Candidate]) -> None:
    """Every candidate's names and shapes, before the first is evaluated."""
    problems: dict[str, None] = {}
    for candidate in candidates:
        for task in evaluator.suite.tasks:
            problems |= dict.fromkeys(evaluator.clip.encoder_problems(candidate.weights_of(task)))
    if problems:
        raise MismatchError(list(problems))


def has_split(suite: Suite, split: str) -> bool:
    """Whether every task has images of a split; one that has not is told in a warning."""
    for task in suite.tasks:
        try:
            suite.images(task, split)
        except DataError as error:
            log.warning("whether the fine-tunes have seen test images cannot be checked: %s", error)
            return False
    return True


def gather(
    suite: Suite,
    split: str,
    labels: Mapping[str, Answers],
    answers: Mapping[str, Mapping[str, Answers]],
    candidates: Iterable[Candidate],
) -> Predictions:
    """The record of what was measured, with what the suite says of classes and sizes, and how candidates were made."""
    classes = {task: suite.classes(task) for task in suite.tasks}
    sizes = {task: dict(suite.data(task).sizes) for task in suite.tasks}
    origins = {candidate.name: candidate.origin for candidate in candidates}
    return Predictions(suite.name, split, classes, labels, answers, sizes, origins)  # type: ignore[arg-type]


def note_version(cache: Cache | None, suite: Suite, candidate: Candidate) -> None:
    """Note that a candidate was measured on test images, with a warning if other versions of it were before."""
    if cache is None:
        return
    versions = note_test_use(cache.store, suite, candidate.name, candidate.digest)
    if versions > 1:
        log.warning(
            "suite %r: %d versions of %r have been measured on the test images by now; choose among versions on "
            "validation images ('tsv evaluate --split validation'), or the figures flatter the chosen one.",
            suite.name, versions, candidate.name,
        )  # fmt: skip
