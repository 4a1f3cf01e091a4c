"""Evaluation and fine-tuning on a small suite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tsvlib.cache import Cache
from tsvlib.candidate import candidates, from_file
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.clip import Clip, load_clip
from tsvlib.decoded import DecodedImages
from tsvlib.distillation import Distillation
from tsvlib.errors import MismatchError, SettingError, SuiteError
from tsvlib.evaluate import Computing, Evaluator
from tsvlib.finetune import finetune
from tsvlib.head import head_key, kept_head, zero_shot_head
from tsvlib.images import LabelledImages, load_images
from tsvlib.names import to_hugging_face
from tsvlib.recipe import Recipe
from tsvlib.store import Store
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


def test_distillation_keeps_the_features_of_other_images(tuned: Suite, tmp_path: Path) -> None:
    others, images = load_images(tuned.path("bright"), "train"), load_images(tuned.path("side"), "train")
    pictures = torch.arange(len(others))

    def drift(distillation: float) -> float:
        clip = load_clip(tuned.clip_model)
        head = zero_shot_head(clip, ["left", "right"], ["{}"])
        seen = others.decode(pictures, clip.preprocess)
        with torch.no_grad():
            before = F.normalize(clip.model.visual(seen), dim=-1)
        recipe = Recipe(steps=20, batch=8, learning_rate=3e-3, distillation=distillation, distillation_batch=8)
        finetune(clip, head, images, tmp_path / "out", recipe, distillation=Distillation(clip, others))
        with torch.no_grad():
            return float(1 - (F.normalize(clip.model.visual(seen), dim=-1) * before).sum(-1).mean())

    assert drift(30.0) < 0.5 * drift(0.0)


def test_interpolation_solves_the_task_on_the_way_from_the_base(tuned: Suite, tmp_path: Path) -> None:
    images = load_images(tuned.path("side"), "train")

    def loss_on_the_way(interpolation: float) -> float:
        clip = load_clip(tuned.clip_model)
        head = zero_shot_head(clip, ["left", "right"], ["{}"])
        base = {name: weight.clone() for name, weight in clip.model.visual.state_dict().items()}
        recipe = Recipe(steps=40, batch=16, learning_rate=3e-3, interpolation=interpolation)
        finetune(clip, head, images, tmp_path / "out", recipe)
        tuned_weights = clip.model.visual.state_dict()
        clip.model.visual.load_state_dict({name: torch.lerp(base[name], tuned_weights[name], 0.3) for name in base})
        with torch.no_grad():
            features = F.normalize(clip.model.visual(images.decode(torch.arange(len(images)), clip.preprocess)), dim=-1)
        return float(F.cross_entropy(features @ head.T, images.labels))

    assert loss_on_the_way(0.2) < 0.75 * loss_on_the_way(1.0)


def test_distillation_without_images_is_refused(tuned: Suite, tmp_path: Path) -> None:
    clip = load_clip(tuned.clip_model)
    with pytest.raises(SettingError, match="distillation 2: no images to distil on"):
        finetune(clip, torch.ones(2, 4), load_images(tuned.path("side"), "train"), tmp_path / "out",
                 Recipe(distillation=2))  # fmt: skip


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


def test_a_wrong_shape_alone_changes_nothing(suite: Suite) -> None:
    clip = load_clip(suite.clip_model)
    before = {name: tensor.clone() for name, tensor in clip.model.visual.state_dict().items()}
    encoder = {name: tensor + 1 for name, tensor in open_checkpoint(suite.checkpoints["side"]).items()}
    encoder["visual.proj"] = encoder["visual.proj"][:3]
    with pytest.raises(MismatchError, match=r"'visual.proj' has shape \(3, 16\), the model needs \(32, 16\)"):
        clip.load_encoder(encoder)
    assert all(torch.equal(before[name], tensor) for name, tensor in clip.model.visual.state_dict().items())


def test_hugging_face_names_are_understood(suite: Suite) -> None:
    ours = open_checkpoint(suite.checkpoints["side"])
    theirs = to_hugging_face(ours)
    vision_only = Checkpoint.from_tensors({k: v for k, v in theirs.items() if k != "visual_projection.weight"})
    clip = load_clip(suite.clip_model)
    own_projection = clip.model.visual.proj.detach().clone()
    clip.load_encoder(theirs)
    assert all(torch.equal(clip.model.state_dict()[name], ours[name]) for name in ours)
    clip.load_encoder(dict(theirs) | {"visual_projection.weight": theirs["visual_projection.weight"] + 1})
    assert not torch.equal(clip.model.visual.proj, own_projection)
    clip.load_encoder(vision_only)
    assert torch.equal(clip.model.visual.proj, own_projection), "it lacks one, so the model's is taken"
    assert torch.equal(clip.model.visual.conv1.weight, ours["visual.conv1.weight"])


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


class Counting:
    """Counts how often images are decoded, and the most bytes of a group of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded, self.largest = 0, 0
        read, groups = LabelledImages.read, DecodedImages.groups

        def counted(images: LabelledImages, rows: torch.Tensor, preprocess: Any) -> Any:
            self.decoded += len(rows)
            return read(images, rows, preprocess)

        def watched(images: DecodedImages, tasks: list[str]) -> Any:
            for group in groups(images, tasks):
                self.largest = max(self.largest, sum(batch.pixels.nbytes for batch in group))
                yield group

        monkeypatch.setattr(LabelledImages, "read", counted)
        monkeypatch.setattr(DecodedImages, "groups", watched)


def test_images_are_decoded_once_for_all_candidates(tuned: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    evaluator = Evaluator(tuned, "test")
    for _ in range(2):
        evaluator.accuracies_of(candidates(tuned, {}))
    images = sum(len(found) for found in evaluator.images.values())
    assert counting.decoded <= images + 128  # and the batch that shows how large an image is


def test_more_images_than_memory_give_the_same_answers(tuned: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsvlib.decoded.BATCH", 16)
    chosen = candidates(tuned, {})
    whole = Evaluator(tuned, "test").answers(chosen)
    counting = Counting(monkeypatch)
    bound = 40 * 3 * 16 * 16  # forty images of 360
    parts = Evaluator(tuned, "test", decoded_bytes=bound).answers(chosen)
    assert counting.largest <= bound
    assert counting.decoded <= 360 + 16, "one pass for all candidates"
    for name, answers in whole.items():
        for task, one in answers.items():
            assert np.array_equal(one, parts[name][task])


def test_pixels_are_kept_as_bytes_and_become_what_preprocessing_gives(suite: Suite) -> None:
    clip = load_clip(suite.clip_model)
    to_pixels, to_floats = clip.pixel_steps
    images = suite.images("side", "test")
    rows = torch.arange(5)
    pixels = images.decode(rows, to_pixels)
    assert pixels.dtype == torch.uint8
    assert torch.equal(to_floats(pixels), images.decode(rows, clip.preprocess))


def test_unknown_preprocessing_is_used_as_it_is(suite: Suite) -> None:
    clip = replace(load_clip(suite.clip_model), preprocess=lambda image: torch.ones(3, 2, 2))
    to_pixels, to_floats = clip.pixel_steps
    assert torch.equal(to_floats(torch.stack([to_pixels(Image.new("RGB", (4, 4)))])), torch.ones(1, 3, 2, 2))


@pytest.fixture
def kept(tmp_path: Path) -> Cache:
    return Cache(Store(tmp_path / "store"))


def test_answers_are_kept_by_content(tuned: Suite, kept: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = candidates(tuned, {})
    first = Evaluator(tuned, "test", cache=kept).answers(chosen)
    counting = Counting(monkeypatch)
    again = Evaluator(tuned, "test", cache=kept).answers(chosen)
    assert counting.decoded == 0
    assert all(np.array_equal(first[name][task], again[name][task]) for name in first for task in first[name])
    other = Evaluator(tuned, "validation", cache=kept)
    other.answers(chosen)
    assert counting.decoded > 0, "other images"


def test_a_candidate_more_computes_only_itself(tuned: Suite, kept: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = candidates(tuned, {})
    Evaluator(tuned, "test", cache=kept).answers(chosen)
    loaded: list[int] = []
    load = Clip.load_encoder
    monkeypatch.setattr(Clip, "load_encoder", lambda clip, weights: (loaded.append(1), load(clip, weights))[1])
    more = from_file(tuned.checkpoints["side"], tuned, "side everywhere")
    Evaluator(tuned, "test", cache=kept).answers([*chosen, more])
    # the fine-tune of 'side' on its own task is known already, though under another name
    assert len(loaded) == 1


def test_heads_are_kept_by_text_tower_tokenizer_classes_and_templates(suite: Suite, kept: Cache) -> None:
    clip = load_clip(suite.clip_model)
    head, key = kept_head(clip, ["left", "right"], ["a {}"], kept)
    assert torch.equal(head, zero_shot_head(clip, ["left", "right"], ["a {}"]))
    assert torch.equal(head, kept_head(clip, ["left", "right"], ["a {}"], kept)[0])
    assert kept.work()["head"] == {"reused": 1, "computed": 1}
    others = {
        head_key(clip, ["right", "left"], ["a {}"]),
        head_key(clip, ["left", "right"], ["the {}"]),
        head_key(replace(clip, tokenizer=lambda texts: clip.tokenizer(texts).flip(1)), ["left", "right"], ["a {}"]),
    }
    other = load_clip(suite.clip_model)
    with torch.no_grad():
        other.model.text_projection.mul_(2)
    others.add(head_key(other, ["left", "right"], ["a {}"]))
    assert len(others | {key}) == 5


def test_half_precision_gives_nearly_the_same(tuned: Suite) -> None:
    chosen = candidates(tuned, {})
    full = Evaluator(tuned, "test").answers(chosen)
    half = Evaluator(tuned, "test", Computing("cpu", "bf16")).answers(chosen)
    same = np.mean([np.mean(full[name][task] == half[name][task]) for name in full for task in full[name]])
    assert same > 0.95


@pytest.mark.parametrize(
    ("computing", "message"),
    [
        (Computing("cpu", "fp8"), "precision = 'fp8': choose one of fp32, bf16, fp16"),  # type: ignore[arg-type]
        (Computing("cuda:99"), "device = 'cuda:99': not available here"),
        (Computing("abacus"), "device = 'abacus': not available here"),
    ],
)
def test_what_cannot_compute_is_told(suite: Suite, computing: Computing, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        computing.prepare(load_clip(suite.clip_model))


def test_an_architecture_without_weights_has_no_head() -> None:
    with pytest.raises(SuiteError, match="model 'ViT-B-32': an architecture without weights"):
        load_clip("ViT-B-32")


def test_an_encoder_alone_is_no_whole_model(suite: Suite) -> None:
    with pytest.raises(MismatchError, match="'text_projection' of the whole model is missing"):
        load_clip(suite.clip_model, suite.base_uri)
