"""Intervals and paired tests against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from tsvlib.errors import DataError
from tsvlib.statistics import accuracy_with_intervals, compare_paired, mcnemar


def answers(right: int, images: int, seed: int = 0) -> np.ndarray:
    found = np.arange(images) < right
    return np.random.default_rng(seed).permutation(found)


def test_the_interval_is_that_of_a_plain_bootstrap_over_images() -> None:
    one, reference = answers(150, 200), answers(190, 200, 1)
    ours = accuracy_with_intervals({"a": one}, {"a": reference}).normalised_mean
    theirs = bootstrap(
        (one, reference), lambda x, y, axis: x.mean(axis) / y.mean(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=5000, rng=0,
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.value == pytest.approx(150 / 190)


def test_the_mean_over_tasks_is_of_ratios_and_surer_than_one_task() -> None:
    candidate = {name: answers(80, 100, seed) for seed, name in enumerate("abcd")}
    reference = {name: answers(100, 100) for name in "abcd"}
    reference["a"] = answers(80, 100)
    found = accuracy_with_intervals(candidate, reference)
    assert found.mean.value == 0.8
    assert found.normalised_mean.value == pytest.approx((1 + 0.8 + 0.8 + 0.8) / 4)
    assert found.mean.half_width < 0.6 * found.tasks["b"].half_width
    assert found.tasks["b"].half_width == pytest.approx(1.96 * np.sqrt(0.8 * 0.2 / 100), abs=0.005)


def test_pairing_sees_what_separate_intervals_hide() -> None:
    other = answers(500, 1000)
    one = other.copy()
    one[np.flatnonzero(~other)[:30]] = True  # right on 30 images more, wrong on none more
    reference = {"a": np.ones(1000, bool)}
    difference = compare_paired({"a": one}, {"a": other}, reference)
    assert difference.mean.value == pytest.approx(0.03)
    assert difference.mean.low > 0.01
    assert difference.p_values["a"] < 1e-6
    alone = [accuracy_with_intervals({"a": found}, reference).mean for found in (one, other)]
    assert alone[0].low < alone[1].high


def test_equal_candidates_do_not_differ() -> None:
    same = {"a": answers(50, 100)}
    difference = compare_paired(same, same, {"a": np.ones(100, bool)})
    assert difference.p_values == {"a": 1.0}
    assert difference.p_value == 1.0
    assert (difference.mean.low, difference.mean.high) == (0, 0)


@settings(max_examples=50)
@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_symmetric_and_a_probability(only_one: int, only_other: int) -> None:
    one = np.array([True] * only_one + [False] * only_other + [True], bool)
    other = np.array([False] * only_one + [True] * only_other + [True], bool)
    p = mcnemar(one, other)
    assert 0 < p <= 1
    assert p == pytest.approx(mcnemar(other, one))


def test_mcnemar_known_value() -> None:
    one = np.array([True] * 8 + [False] * 2)
    assert mcnemar(one, ~one) == pytest.approx(0.109375)  # 2 · (1 + 10 + 45) / 2^10


def test_the_answer_does_not_depend_on_other_tasks_or_their_order() -> None:
    both = {"a": answers(30, 50), "b": answers(20, 50)}
    reference = {name: np.ones(50, bool) for name in both}
    forth = accuracy_with_intervals(both, reference)
    back = accuracy_with_intervals(dict(reversed(both.items())), reference)
    assert forth.tasks["a"] == back.tasks["a"]
    assert forth.mean.low == pytest.approx(back.mean.low)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match=r"task 'a': measured on different images \(3, 4\)"):
        accuracy_with_intervals({"a": np.ones(3, bool)}, {"a": np.ones(4, bool)})
    with pytest.raises(DataError, match="task 'a': the fine-tuned model gets no image right"):
        accuracy_with_intervals({"a": np.ones(3, bool)}, {"a": np.zeros(3, bool)})
