"""Sensitivities: the Fisher information as its definition has it, and what it does to a budget."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F
from test_cli import Tsv, tsv  # noqa: F401

from tsvlib.checkpoint import open_checkpoint
from tsvlib.clip import load_clip
from tsvlib.head import zero_shot_head
from tsvlib.sensitivity import fisher_diagonal, sensitivities
from tsvlib.suite import Suite


def test_the_fisher_information_is_that_of_its_definition(tuned: Suite) -> None:
    clip = load_clip(tuned.clip_model)
    head = zero_shot_head(clip, tuned.classes("side"), ["{}"])
    images = tuned.images("side", "validation")
    some = ["visual.proj", "visual.transformer.resblocks.1.mlp.c_fc.weight", "visual.ln_pre.bias"]
    encoder = clip.model.visual
    wanted = [dict(encoder.named_parameters())[name.removeprefix("visual.")] for name in some]
    exact = dict.fromkeys(some, 0.0)
    encoder.requires_grad_(True)
    for row in range(len(images)):
        features = F.normalize(encoder(images.decode(torch.tensor([row]), clip.preprocess)), dim=-1)
        scores = (features @ head.T)[0].log_softmax(0)
        for label in range(len(head)):
            gradients = torch.autograd.grad(scores[label], wanted, retain_graph=True)
            for name, gradient in zip(some, gradients, strict=True):
                exact[name] += float(scores[label].detach().exp() * gradient.square().mean()) / len(images)
    estimates = [fisher_diagonal(clip, head, images, seed=seed) for seed in range(60)]
    for name in some:
        assert fmean(one[name] for one in estimates) == pytest.approx(exact[name], rel=0.25)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_every_parameter_of_every_task_is_measured(tuned: Suite) -> None:
    tasks = {task: open_checkpoint(uri) for task, uri in tuned.checkpoints.items()}
    found = sensitivities(tuned, tasks, images=8)
    assert set(found) == set(tasks)
    for task, of_task in found.items():
        assert set(of_task) == set(tasks[task].specs)
        assert all(value >= 0 for value in of_task.values())
        assert max(of_task.values()) > 0


def test_compress_for_accuracy(tsv: Tsv, tuned: Suite, tmp_path: Path) -> None:  # noqa: F811
    suite_file = Path(tuned.clip_model).parent / "suite.yaml"
    out = tmp_path / "a.safetensors"
    words = ("compress", "--suite", suite_file, "--weighting", "accuracy", "--out", out)
    status, _, errors = tsv(*words)
    assert status == 2
    assert "says how a --budget is spent; give one" in errors.replace("\n", " ")
    status, printed, _ = tsv(*words, "--budget", "60%", "--json")
    assert status == 0
    assert json.loads(printed)["bytes"] <= 0.6 * json.loads(printed)["dense_bytes"]
    status, _, errors = tsv(
        "compress",
        "--base",
        "b",
        "--task",
        "t=c",
        "--weighting",
        "accuracy",
        "--budget",
        "50%",
        "--out",
        out,
        "--force",
    )
    assert status == 2
    assert "needs --suite, to measure on its validation images" in errors.replace("\n", " ")
