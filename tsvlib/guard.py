"""What makes a measured accuracy unworthy of belief: wrong splits, leaked references, mixed-up classes.

Published tables of this field contain such faults: a fine-tune trained on its own test images (DTD), and merged models
evaluated on other images than their reference (EuroSAT). Each check needs only what an evaluation has anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import fisher_exact

from .statistics import mcnemar

Kind = Literal["split-size", "leak", "above-reference", "class-order", "one-class"]

SIGNIFICANT = 0.001
"""p-value below which chance is ruled out; small, because a table of 20 tasks and 10 candidates is tested at once."""
LEAK_GAP = 0.03
"""Test accuracy above validation accuracy by more than this; two fair splits differ by less."""
PERMUTATION_GAIN = 0.05
"""Accuracy won by another order of the classes, on images that the order was not chosen on."""
PERMUTATION_LEAST = 0.5
"""Accuracy that another order must reach; answers that say little are better explained by almost any other order."""
ONE_CLASS, ONE_CLASS_LABELS = 0.99, 0.9
"""Share of images that get the same answer, and the largest share of them that may have it as their label."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with one task, or with one candidate on it."""

    kind: Kind
    task: str
    candidate: str
    """Whose accuracy; empty where the data themselves are wrong."""
    message: str
    doubts_task: bool
    """Whether the task's reference or data are in doubt, so that averages are shown without the task too."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self)


@dataclass(frozen=True)
class Count:
    """Right answers among images."""

    right: int
    images: int

    @classmethod
    def of(cls, accuracy: float, images: int) -> Count:
        """From an accuracy (0 to 1) as a paper gives it."""
        return cls(round(accuracy * images), images)

    @property
    def accuracy(self) -> float:
        return self.right / self.images

    @property
    def _table_row(self) -> list[int]:
        return [self.right, self.images - self.right]

    def exceeds(self, other: Count) -> float:
        """p-value of not being better than ``other``, measured on other images (Fisher's exact test)."""
        return float(fisher_exact([self._table_row, other._table_row], alternative="greater").pvalue)


def check_split_size(task: str, split: str, images: int, expected: int | None) -> list[Finding]:
    """Another number of images than the split has."""
    if expected is None or images == expected:
        return []
    message = (
        f"task {task!r}: its {split} split has {images:,} images, {expected:,} are expected. Another split than the "
        "published one is not comparable with it; check the data's source and how it is split."
    )
    return [Finding("split-size", task, "", message, doubts_task=True)]


def check_leak(task: str, candidate: str, test: Count, validation: Count) -> list[Finding]:
    """A fine-tune that does far better on test images than on validation images has seen the test images."""
    gap = test.accuracy - validation.accuracy
    if gap <= LEAK_GAP or test.exceeds(validation) >= SIGNIFICANT:
        return []
    message = (
        f"task {task!r}: {candidate} is right on {test.accuracy:.1%} of {test.images:,} test images but on "
        f"{validation.accuracy:.1%} of {validation.images:,} validation images; it has probably been trained on test "
        "images. Fine-tune it anew, on train images alone."
    )
    return [Finding("leak", task, candidate, message, doubts_task=True)]


def check_reference(
    task: str, candidate: str, measured: Count, reference: Count, p_value: float | None = None
) -> list[Finding]:
    """Normalised accuracy above 100 % by more than chance.

    Args:
        task: the task.
        candidate: whose accuracy.
        measured: of the candidate.
        reference: of the task's fine-tuned model.
        p_value: of a paired test, where both answered the same images.
    """
    if measured.accuracy <= reference.accuracy:
        return []
    if (measured.exceeds(reference) if p_value is None else p_value) >= SIGNIFICANT:
        return []
    other = "" if measured.images == reference.images else ", which are other images"
    message = (
        f"task {task!r}: {candidate} is right on {measured.accuracy:.1%} of {measured.images:,} images, the fine-tuned "
        f"model on {reference.accuracy:.1%} of {reference.images:,}{other}; normalised accuracy above 100 % says that "
        "the reference is too low. Check that it is the task's own fine-tune, trained to the end."
    )
    return [Finding("above-reference", task, candidate, message, doubts_task=True)]


def check_class_order(
    task: str,
    candidate: str,
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    classes: Sequence[str],
    doubts_task: bool,
) -> list[Finding]:
    """Another order of the classes explains the answers much better.

    The order is chosen on every second image and judged on the others, so that chance finds none.
    """
    chosen_on, judged_on = slice(0, None, 2), slice(1, None, 2)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (predicted[chosen_on], labels[chosen_on]), 1)
    meant = linear_sum_assignment(confusion, maximize=True)[1]  # answer -> label that it stands for
    as_it_is = predicted[judged_on] == labels[judged_on]
    reordered = meant[predicted[judged_on]] == labels[judged_on]
    gain = reordered.mean() - as_it_is.mean() if len(as_it_is) else 0.0
    if gain < PERMUTATION_GAIN or reordered.mean() < PERMUTATION_LEAST or mcnemar(reordered, as_it_is) >= SIGNIFICANT:
        return []
    moved = [answer for answer in range(len(classes)) if meant[answer] != answer and confusion[answer].any()]
    shown = "; ".join(f"images of {classes[meant[answer]]!r} are called {classes[answer]!r}" for answer in moved[:3])
    message = (
        f"task {task!r}: {candidate} would be right on {reordered.mean():.1%} instead of {as_it_is.mean():.1%} of "
        f"images if the classes stood in another order ({shown}). Put the class names in the order of the labels."
    )
    return [Finding("class-order", task, candidate, message, doubts_task)]


def check_one_class(
    task: str,
    candidate: str,
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    classes: Sequence[str],
    doubts_task: bool,
) -> list[Finding]:
    """The same answer to every image."""
    answers = np.bincount(predicted, minlength=len(classes))
    answer = int(answers.argmax())
    share, of_labels = answers[answer] / len(predicted), (labels == answer).mean()
    if share < ONE_CLASS or of_labels > ONE_CLASS_LABELS:
        return []
    message = (
        f"task {task!r}: {candidate} calls {share:.0%} of the images {classes[answer]!r}. Its weights may be broken "
        "(alpha too large, another activation), or the class names or templates do not fit."
    )
    return [Finding("one-class", task, candidate, message, doubts_task)]


def doubtful_tasks(findings: Sequence[Finding]) -> list[str]:
    """Tasks whose reference or data are in doubt, sorted."""
    return sorted({finding.task for finding in findings if finding.doubts_task})
