"""Routers: which task an image belongs to, and what that does to accuracy over the mixed stream."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tsvlib.archive import Archive, compress
from tsvlib.checkpoint import open_checkpoint
from tsvlib.errors import ArchiveError, DataError
from tsvlib.routed import RoutedEvaluator
from tsvlib.routing import DiscriminantRouter, ResidualRouter, chosen_tasks, layer_inputs
from tsvlib.suite import Suite


def test_the_discriminant_router_finds_its_gaussians() -> None:
    random = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(3, 10, generator=random)
    mixing = torch.randn(10, 10, generator=random)

    def draw(task: int, count: int) -> torch.Tensor:
        return means[task] @ mixing + torch.randn(count, 10, generator=random) @ mixing

    router = DiscriminantRouter.fit({name: draw(i, 100) for i, name in enumerate("abc")}, "layer")
    for task in range(3):
        assert (router.scores(draw(task, 200)).argmax(1) == task).float().mean() > 0.97


def test_the_residual_router_takes_the_task_whose_subspace_holds_the_input() -> None:
    bases = [torch.eye(9)[3 * i : 3 * i + 3] for i in range(3)]
    router = ResidualRouter(["a", "b", "c"], "layer", bases)
    inputs = torch.stack([7.0 * basis.sum(0) + 0.1 for basis in bases])
    assert router.scores(inputs).argmax(1).tolist() == [0, 1, 2]
    assert router.scores(bases[1]).max() == 0  # nothing is left


def test_a_saved_router_scores_alike(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    router = DiscriminantRouter.fit({name: torch.randn(20, 6, generator=random) for name in "ab"}, "blocks.1")
    router.save(tmp_path / "router.safetensors")
    loaded = DiscriminantRouter.load(tmp_path / "router.safetensors")
    inputs = torch.randn(5, 6, generator=random)
    assert (loaded.tasks, loaded.layer) == (["a", "b"], "blocks.1")
    torch.testing.assert_close(loaded.scores(inputs), router.scores(inputs))


def test_tasks_are_chosen_by_weight() -> None:
    scores = torch.log(torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.1, 0.4], [0.34, 0.33, 0.33]]))
    assert chosen_tasks(scores) == [[0], [0], [0]]
    assert chosen_tasks(scores, most=2, threshold=0.2) == [[0], [0, 2], [0, 1]]
    assert chosen_tasks(scores, most=3, threshold=0.2) == [[0], [0, 2], [0, 1, 2]]
    assert chosen_tasks(scores, most=3, threshold=0.6) == [[0], [0], [0]]


def test_the_input_of_a_layer_is_the_class_tokens() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.inner(tokens + 1)[:, 0]

    tokens = torch.randn(5, 3, 4)
    assert torch.equal(layer_inputs(Encoder(), "inner", tokens.split(2)), tokens[:, 0] + 1)
    with pytest.raises(DataError, match=r"no module 'iner'\. Did you mean 'inner'\?"):
        layer_inputs(Encoder(), "iner", [tokens])


@pytest.fixture
def archive(suite: Suite, tmp_path: Path) -> Archive:
    base = open_checkpoint(suite.base_uri)
    tasks = {name: open_checkpoint(uri) for name, uri in suite.checkpoints.items()}
    return compress(base, tasks, out=tmp_path / "a.safetensors", rank_fraction=0.3)


class Oracle:
    """Knows the order of the stream: forty images of each task."""

    tasks = ("bright", "side", "stripe")
    layer = "transformer.resblocks.1.mlp.c_fc"

    def scores(self, activations: torch.Tensor) -> torch.Tensor:
        return 10 * nn.functional.one_hot(torch.arange(len(activations)) // 40, 3).float()


def test_a_perfect_router_reaches_the_oracle(suite: Suite, archive: Archive) -> None:
    evaluator = RoutedEvaluator(suite, archive, open_checkpoint(suite.base_uri))
    found = evaluator.evaluate(Oracle())  # type: ignore[arg-type]
    assert found.routing == dict.fromkeys(suite.tasks, 1.0)
    assert found.end == found.oracle
    assert found.points_lost == 0
    assert found.models == 3


@pytest.mark.parametrize("most", [1, 2])
def test_routers_on_a_suite(suite: Suite, archive: Archive, most: int) -> None:
    evaluator = RoutedEvaluator(suite, archive, open_checkpoint(suite.base_uri))
    for router in (evaluator.discriminant_router(images=40), evaluator.residual_router()):
        found = evaluator.evaluate(router, most, threshold=0.3)
        assert all(found.end[task] <= 1 for task in suite.tasks)
        if most == 1:  # only an image of its own task's model can be right
            assert all(found.end[task] <= found.routing[task] for task in suite.tasks)
            assert found.models <= 3
    assert sum(evaluator.evaluate(evaluator.discriminant_router(images=40)).routing.values()) / 3 > 0.6


def test_a_merged_model_is_that_of_the_stored_factors(suite: Suite, archive: Archive) -> None:
    from tsvlib.merging import merge

    base = open_checkpoint(suite.base_uri)
    evaluator = RoutedEvaluator(suite, archive, base)
    found = evaluator.model(("bright", "side"))
    models = {task: archive.extract(task, base) for task in ("bright", "side")}
    expected = merge(base, models, "tsv-m", key_policy=archive.key_policy("side"), rank_fraction=0.3)
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    delta = expected[name] - base[name]
    assert (found[name] - expected[name]).norm() < 0.02 * delta.norm()


def test_what_routing_refuses(suite: Suite, archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"no parameter 'visual\.nowhere\.weight'"):
        ResidualRouter.of(archive, "nowhere")
    with pytest.raises(ArchiveError, match=r"is no router\. Make one with 'tsv route --save'"):
        DiscriminantRouter.load(suite.base_uri)
    base = open_checkpoint(suite.base_uri)
    small = compress(base, {"side": open_checkpoint(suite.checkpoints["side"])}, out=tmp_path / "s.safetensors")
    with pytest.raises(ArchiveError, match="has no task bright, stripe of suite 'tiny'"):
        RoutedEvaluator(suite, small, base)
