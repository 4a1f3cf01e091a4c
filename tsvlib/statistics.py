"""How sure a measured accuracy is, and whether two candidates differ: bootstrap over images, and McNemar's test.

What a bootstrap needs of n images is how often each pattern of right and wrong answers occurs: drawing n images with
replacement draws those counts from a multinomial distribution. So nothing is resampled image by image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from .errors import DataError

RESAMPLES, SEED, CONFIDENCE = 10_000, 0, 0.95

Correct = Mapping[str, NDArray[np.bool_]]
"""Task -> whether each of its images is answered rightly, (images,)."""


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap percentile interval of 95 %."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """What stands behind ±."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Accuracy:
    """One candidate's accuracy, absolute and relative to the fine-tuned models, by task and in the mean."""

    tasks: dict[str, Interval]
    mean: Interval
    normalised_tasks: dict[str, Interval]
    normalised_mean: Interval


@dataclass(frozen=True)
class Difference:
    """One candidate minus another on the same images."""

    tasks: dict[str, Interval]
    p_values: dict[str, float]
    """Task -> exact McNemar test of equal accuracy, two-sided."""
    mean: Interval
    normalised_mean: Interval
    p_value: float
    """Of no difference in mean accuracy: the share of resamples on the other side of zero, doubled."""


def accuracy_with_intervals(candidate: Correct, reference: Correct) -> Accuracy:
    """Accuracy by task and in the mean, over the tasks of ``candidate``.

    Candidate and reference are resampled together, so the interval of the ratio knows that they saw the same images.

    Args:
        candidate: its answers.
        reference: those of the fine-tuned models to the same images.

    Raises:
        DataError: other images, or a task whose fine-tuned model is never right.
    """
    drawn = {task: _resampled_accuracies([candidate[task], reference[task]], task) for task in candidate}
    of_task = {task: _interval(one.measured[0], one.resamples[0]) for task, one in drawn.items()}
    ratios = {task: one.ratio(0, 1, task) for task, one in drawn.items()}
    return Accuracy(
        tasks=of_task,
        mean=_mean_interval([(one.measured[0], one.resamples[0]) for one in drawn.values()]),
        normalised_tasks={task: _interval(*ratio) for task, ratio in ratios.items()},
        normalised_mean=_mean_interval(list(ratios.values())),
    )


def compare_paired(one: Correct, other: Correct, reference: Correct) -> Difference:
    """``one`` minus ``other`` on the tasks of ``one``, image by image.

    Raises:
        DataError: they were not measured on the same images.
    """
    drawn = {task: _resampled_accuracies([one[task], other[task], reference[task]], task) for task in one}
    differences = {
        task: (found.measured[0] - found.measured[1], found.resamples[0] - found.resamples[1])
        for task, found in drawn.items()
    }
    ratios = []
    for task, found in drawn.items():
        (first, first_drawn), (second, second_drawn) = found.ratio(0, 2, task), found.ratio(1, 2, task)
        ratios.append((first - second, first_drawn - second_drawn))
    resampled_mean = np.mean([resamples for _, resamples in differences.values()], axis=0)
    tail = min((resampled_mean <= 0).mean(), (resampled_mean >= 0).mean())
    return Difference(
        tasks={task: _interval(*difference) for task, difference in differences.items()},
        p_values={task: mcnemar(one[task], other[task]) for task in one},
        mean=_mean_interval(list(differences.values())),
        normalised_mean=_mean_interval(ratios),
        p_value=float(min(1.0, max(2 * tail, 2 / RESAMPLES))),
    )


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """p-value of equal accuracy, exact and two-sided: where only one is right, it should be either half the time."""
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


@dataclass(frozen=True)
class _Resampled:
    """Accuracies of several candidates on one task: measured, (candidates,), and in resamples, (candidates, R)."""

    measured: NDArray[np.float64]
    resamples: NDArray[np.float64]

    def ratio(self, above: int, below: int, task: str) -> tuple[float, NDArray[np.float64]]:
        if self.measured[below] == 0:
            raise DataError(
                f"task {task!r}: the fine-tuned model gets no image right, so normalised accuracy is undefined. "
                "Check that the suite names the task's own checkpoint, and its classes in label order."
            )
        least = 1e-12  # a resample without a single right answer of the reference; only a handful of images allow it
        resampled = self.resamples[above] / np.maximum(self.resamples[below], least)
        return float(self.measured[above] / self.measured[below]), resampled


def _resampled_accuracies(answers: Sequence[NDArray[np.bool_]], task: str) -> _Resampled:
    """The same images drawn for all; each task has a stream of its own that does not depend on the others."""
    images = len(answers[0])
    if any(len(one) != images for one in answers) or not images:
        sizes = ", ".join(str(len(one)) for one in answers)
        raise DataError(f"task {task!r}: measured on different images ({sizes}); evaluate all candidates together.")
    patterns = np.array(list(np.ndindex(*[2] * len(answers))))  # (2^c, c): who is right
    codes = np.ravel_multi_index(tuple(one.astype(int) for one in answers), [2] * len(answers))
    counts = np.bincount(codes, minlength=len(patterns))
    stream = np.random.default_rng([SEED, *task.encode()])
    drawn = stream.multinomial(images, counts / images, size=RESAMPLES)
    return _Resampled(counts @ patterns / images, (drawn @ patterns).T / images)


def _interval(value: float, resamples: NDArray[np.float64]) -> Interval:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resamples, [outside, 1 - outside])
    return Interval(float(value), float(low), float(high))


def _mean_interval(of_tasks: Sequence[tuple[float, NDArray[np.float64]]]) -> Interval:
    """Of a mean over tasks: each task's images are drawn on their own."""
    value = float(np.mean([measured for measured, _ in of_tasks]))
    return _interval(value, np.mean([resamples for _, resamples in of_tasks], axis=0))
