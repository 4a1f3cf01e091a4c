"""Evaluation and fine-tuning on a small suite."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

from tsvlib.candidate import candidates, from_file
from tsvlib.checkpoint import open_checkpoint
from tsvlib.clip import load_clip
from tsvlib.errors import MismatchError, SuiteError
from tsvlib.evaluate import Evaluator
from tsvlib.finetune import Recipe, finetune
from tsvlib.head import zero_shot_head
from tsvlib.images import load_images
from tsvlib.suite import Suite


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
    assert Evaluator(tuned, "test").accuracies(lambda task: weights)["side"] == right / len(images)


def test_fine_tuning_learns_its_own_task(tuned: Suite) -> None:
    evaluator = Evaluator(tuned, "test")
    zero_shot, fine_tuned = (evaluator.accuracies(one.weights_of) for one in candidates(tuned, {}))
    assert fmean(fine_tuned.values()) > 0.9
    assert fmean(zero_shot.values()) < 0.75


def test_fine_tuning_repeats_to_the_bit(tuned: Suite, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        clip = load_clip(tuned.clip_model)
        head = zero_shot_head(clip, ["left", "right"], ["{}"])
        images = load_images(tuned.path("side"), "train")
        digests.add(finetune(clip, head, images, tmp_path / name, Recipe(steps=5, batch=8)).digest)
    assert len(digests) == 1


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
