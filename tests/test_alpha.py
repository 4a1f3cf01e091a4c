"""Searching alpha and rank on validation images."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch

from tsvlib.alpha import Setting, check_parameters, scaled, search
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.errors import MethodError
from tsvlib.evaluate import Evaluator
from tsvlib.merging import merge
from tsvlib.suite import Suite


class Search:
    """Searches on the validation images of a suite, and counts merges."""

    def __init__(self, suite: Suite) -> None:
        self.base = open_checkpoint(suite.base_uri)
        self.tasks = {task: open_checkpoint(path) for task, path in suite.checkpoints.items()}
        self.evaluator = Evaluator(suite, "validation")
        self.merges = 0

    def merge(self, method: str, **parameters: Any) -> Checkpoint:
        self.merges += 1
        return merge(self.base, self.tasks, method, **parameters)

    def __call__(self, method: str, **parameters: Any) -> Any:
        merged = lambda given: self.merge(method, **given)  # noqa: E731
        return search(self.evaluator, self.base, merged, method, parameters, len(self.tasks))

    def accuracy(self, merged: Checkpoint) -> float:
        return fmean(self.evaluator.accuracies(lambda task: merged).values())


@pytest.fixture
def on(tuned: Suite) -> Search:
    return Search(tuned)


def test_alpha_is_the_best_of_those_tried_and_the_smallest_of_equals(on: Search) -> None:
    found = on("task-arithmetic", alpha="search")
    alpha, best = found.parameters["alpha"], max(found.tried.values())
    assert alpha == min(one.alpha for one, accuracy in found.tried.items() if accuracy == best)
    assert on.merges == 1, "linear in alpha: merged once"
    assert on.accuracy(on.merge("task-arithmetic", alpha=alpha)) == pytest.approx(best)
    assert found.alpha_curve[alpha] == best


def test_a_fine_grid_lies_around_the_coarse_best(on: Search) -> None:
    found = on("task-arithmetic", alpha="search")
    steps = {round(one.alpha / 0.05) for one in found.tried}
    chosen = round(found.parameters["alpha"] / 0.05)
    coarse = round(chosen / 4) * 4
    assert {step for step in steps if step % 4 == 0} >= {4, 8, 12}
    assert any(set(range(max(1, peak - 3), peak + 4)) <= steps for peak in (coarse - 4, coarse, coarse + 4))


def test_methods_that_are_not_linear_in_alpha_are_merged_for_every_alpha(on: Search) -> None:
    found = on("tsv-m", alpha="search", post="svc", svc_floor=1.0)
    assert on.merges == len(found.tried)
    for setting in list(found.tried)[:3]:
        merged = on.merge("tsv-m", alpha=setting.alpha, post="svc", svc_floor=1.0)
        assert found.tried[setting] == pytest.approx(on.accuracy(merged))


def test_rank_is_searched_with_alpha(on: Search) -> None:
    found = on("tsv-m", alpha="search", rank_fraction="search")
    assert {one.rank for one in found.tried} > {None}
    best = max(found.tried.values())
    assert found.tried[Setting(found.parameters["alpha"], found.parameters["rank_fraction"])] == best
    merged = on.merge("tsv-m", **found.parameters)
    assert on.accuracy(merged) == pytest.approx(best)


def test_rank_is_searched_at_a_given_alpha(on: Search) -> None:
    found = on("low-rank-sum", alpha=0.5, rank_fraction="search")
    assert {one.alpha for one in found.tried} == {0.5}
    assert found.parameters["alpha"] == 0.5
    assert len(found.tried) > 2


def test_nothing_to_search_merges_nothing(on: Search) -> None:
    assert on("tsv-m", alpha=0.7).parameters == {"alpha": 0.7}
    assert on.merges == 0


def test_the_test_images_are_not_for_searching(tuned: Suite) -> None:
    on = Search(tuned)
    on.evaluator = Evaluator(tuned, "test")
    with pytest.raises(MethodError, match="search: needs validation images, not the test split"):
        on("tsv-m", alpha="search")


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("ties", {"density": "search"}, "density = search: only alpha and rank_fraction can be searched"),
        ("average", {"rank_fraction": "search"}, "method 'average' takes no parameter 'rank_fraction'"),
        ("tsv-m", {"alpha": "seek"}, "alpha = 'seek'"),
    ],
)
def test_what_cannot_be_searched_is_told(method: str, parameters: dict, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        check_parameters(method, parameters)


def test_scaled_is_linear() -> None:
    base = Checkpoint.from_tensors({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([3])})
    merged = Checkpoint.from_tensors({"w": torch.tensor([3.0, 2.0]), "n": torch.tensor([3])})
    halfway = scaled(base, merged, 0.5)
    assert halfway["w"].tolist() == [2.0, 2.0]
    assert halfway["n"].tolist() == [3]
