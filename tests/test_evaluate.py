"""Evaluation, alpha search and fine-tuning on a small suite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make_suite

from tsvlib.alpha import scaled, search_alpha
from tsvlib.candidate import candidates, from_file
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.clip import load_clip
from tsvlib.errors import DataError, MismatchError, SuiteError
from tsvlib.evaluate import Evaluator, mean, normalised
from tsvlib.finetune import Recipe, finetune
from tsvlib.head import zero_shot_head
from tsvlib.images import load_images
from tsvlib.merging import merge
from tsvlib.suite import Suite, load_suite


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A suite whose fine-tunes really are fine-tuned."""
    suite = load_suite(make_suite(tmp_path_factory.mktemp("tuned"), images=120))
    for task, out in suite.checkpoints.items():
        clip = load_clip(suite.clip_model)
        head = zero_shot_head(clip, suite.classes(task), suite.task(task).templates)
        images = suite.images(task, "train")
        finetune(clip, head, images, Path(out), Recipe(steps=80, batch=32, learning_rate=3e-3))
    return suite


def test_accuracy_is_that_of_a_plain_loop(tuned: Suite) -> None:
    weights = open_checkpoint(tuned.checkpoints["side"])
    clip = load_clip(tuned.clip_model)
    clip.load_encoder(weights)
    head = zero_shot_head(clip, ["left", "right"], ["a photo of {}"])
    images = load_images(tuned.path("side"), "test")
    right = 0
    for i in range(len(images)):
        with torch.no_grad():
            feature = F.normalize(clip.model.visual(images.decode(torch.tensor([i]), clip.preprocess)), dim=-1)
        right += int((head @ feature[0]).argmax() == images.labels[i])
    assert Evaluator(tuned, "test").accuracy("side", weights) == right / len(images)


def test_fine_tuning_learns_its_own_task(tuned: Suite) -> None:
    evaluator = Evaluator(tuned, "test")
    zero_shot, fine_tuned = (evaluator.accuracies(one.weights_of) for one in candidates(tuned, {}))
    assert mean(fine_tuned) > 0.9
    assert mean(zero_shot) < 0.75


def test_fine_tuning_repeats_to_the_bit(tuned: Suite, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        clip = load_clip(tuned.clip_model)
        head = zero_shot_head(clip, ["left", "right"], ["{}"])
        images = load_images(tuned.path("side"), "train")
        digests.add(finetune(clip, head, images, tmp_path / name, Recipe(steps=5, batch=8)).digest)
    assert len(digests) == 1


def test_alpha_is_the_best_of_the_curve(tuned: Suite) -> None:
    base = open_checkpoint(tuned.path(tuned.base))
    tasks = {task: open_checkpoint(path) for task, path in tuned.checkpoints.items()}
    evaluator = Evaluator(tuned, "validation")
    alpha, curve = search_alpha(evaluator, base, merge(base, tasks, "task-arithmetic", alpha=1.0))
    best = max(curve.values())
    assert alpha == min(a for a, accuracy in curve.items() if accuracy == best)
    merged = merge(base, tasks, "task-arithmetic", alpha=alpha)
    assert mean(evaluator.accuracies(lambda task: merged)) == pytest.approx(best)


def test_scaled_is_linear() -> None:
    base = Checkpoint.from_tensors({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([3])})
    merged = Checkpoint.from_tensors({"w": torch.tensor([3.0, 2.0]), "n": torch.tensor([3])})
    halfway = scaled(base, merged, 0.5)
    assert halfway["w"].tolist() == [2.0, 2.0]
    assert halfway["n"].tolist() == [3]


def test_normalised_is_the_mean_of_ratios() -> None:
    assert mean(normalised({"a": 0.5, "b": 0.9}, {"a": 1.0, "b": 0.9})) == 0.75


def test_a_reference_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="task 'a': the fine-tuned model gets no image right"):
        normalised({"a": 0.5}, {"a": 0.0})


def test_wrong_encoders_are_refused_whole(suite: Suite) -> None:
    clip = load_clip(suite.clip_model)
    before = clip.model.visual.proj.detach().clone()
    encoder = dict(open_checkpoint(suite.checkpoints["side"]))
    encoder["visual.ln_post.bias"] = torch.zeros(3)
    encoder["visual.extra"] = encoder.pop("visual.class_embedding")
    with pytest.raises(MismatchError) as caught:
        clip.load_encoder(encoder)
    for part in (
        "'visual.class_embedding' is missing",
        "'visual.extra' is unknown",
        "shape (3,), the model needs (32,)",
    ):
        assert part in str(caught.value)
    assert torch.equal(clip.model.visual.proj, before)


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="model 'ViT-Z': open_clip knows no such model"):
        load_clip("ViT-Z")
    with pytest.raises(SuiteError, match=r"no open_clip_config\.json there"):
        load_clip(tmp_path)


def test_an_archive_is_read_as_each_task(tuned: Suite, tmp_path: Path) -> None:
    from tsvlib.archive import compress

    base = open_checkpoint(tuned.path(tuned.base))
    tasks = {task: open_checkpoint(path) for task, path in tuned.checkpoints.items()}
    compress(base, tasks, out=tmp_path / "all.safetensors", rank_fraction=1.0, dtype="fp32")
    archived = from_file(tmp_path / "all.safetensors", tuned)
    evaluator = Evaluator(tuned, "test")
    assert evaluator.accuracies(archived.weights_of) == evaluator.accuracies(tasks.__getitem__)
