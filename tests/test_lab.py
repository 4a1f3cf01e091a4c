"""The lab: pictures that repeat, captions that its vocabulary can say, tasks that can be told apart."""

from __future__ import annotations

import random
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch import Generator

from tsvlab.captions import CONTEXT_LENGTH, Encoder, aliases, byte_pair_merges, describe, vocabulary, write_merges
from tsvlab.drawing import SIDE, Look
from tsvlab.make import LAB_RECIPE, SHIPPED
from tsvlab.measure import FILES, TABLES, measure_lab, summary, tables, write_measured
from tsvlab.measure import SIZES as SUITES
from tsvlab.pretrain import Mixture, contrastive_loss, learning_rate
from tsvlab.scenes import RELATIONS, relations
from tsvlab.tasks import SIZES, TASKS, TEMPLATES
from tsvlib.cache import Cache
from tsvlib.checkpoint import open_checkpoint
from tsvlib.clip import load_clip
from tsvlib.head import zero_shot_head
from tsvlib.recipe import Recipe
from tsvlib.store import Store
from tsvlib.studies import Outcome
from tsvlib.suite import load_suite

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("task", ["digits", "zodiac", "style"])
def test_pictures_repeat_and_splits_differ(task: str) -> None:
    lab_task = TASKS[task]()
    pictures, labels = lab_task.draw("validation", 5)
    again, _ = lab_task.draw("validation", 5)
    assert torch.equal(pictures, again)
    assert pictures.dtype == torch.uint8
    assert pictures.shape[1:] == (3, SIDE, SIDE)
    assert 0 <= int(labels.min()) <= int(labels.max()) < len(lab_task.classes)
    drawn = {split: {p.numpy().tobytes() for p in lab_task.draw(split, 5)[0]} for split in SIZES}
    assert not drawn["train"] & drawn["test"]
    assert not drawn["validation"] & (drawn["test"] | drawn["train"])


def test_there_are_twenty_tasks_with_distinct_classes() -> None:
    assert len(TASKS) == 20
    for make in TASKS.values():
        classes = make().classes
        assert len(set(classes)) == len(classes) >= 4


def test_the_relation_can_be_seen() -> None:
    drawn = relations(Generator().manual_seed(0), 200, Look(), first_shape="star")
    assert set(drawn.facts["shape"]) == {"star"}
    assert "star" not in drawn.facts["other"]
    assert set(drawn.facts["relation"]) == set(RELATIONS)


def test_every_word_is_one_token_and_every_alias_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("merges") / "merges.txt.gz"
    write_merges(file)
    encoder = Encoder(file, spelled=0)
    for word in vocabulary():
        assert len(encoder.tokenizer.encode(word)) == 1, word
    assert len(set(aliases().values())) == len(aliases())
    assert file.read_bytes() == (SHIPPED / "merges.txt.gz").read_bytes()


def test_merges_join_the_most_frequent_pair_first() -> None:
    assert byte_pair_merges(["abd", "abc"])[0] == ("a", "b")


def test_a_word_spelled_out_ends_like_a_word() -> None:
    encoder = Encoder(SHIPPED / "merges.txt.gz", spelled=1)
    tokens = encoder(["star"], random.Random(0))
    assert tokens.shape == (1, CONTEXT_LENGTH)
    assert encoder.tokenizer.decode(tokens[0, 1:5].tolist()).strip() == "star"


def test_captions_state_only_facts() -> None:
    chance = random.Random(0)
    facts = {"family": "digit", "name": "seven", "typeface": "sans", "colour": "red", "ground": "blue"}
    said = {word for _ in range(300) for word in describe(facts, chance).split()}
    assert {"digit", "seven", "red"} <= said
    assert "alpha" not in said


def test_the_mixture_repeats() -> None:
    one, two = Mixture(3).batch(64), Mixture(3).batch(64)
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]
    assert all(caption.strip() for caption in one[1])


def test_the_loss_counts_equal_captions_once() -> None:
    image = torch.eye(3)
    text = torch.eye(3)[:2]
    row = torch.tensor([0, 1, 1])
    loss, accuracy = contrastive_loss(torch.stack([image[0], image[1], image[1]]), text, torch.tensor(50.0), row)
    assert accuracy == 1
    # two pictures share one caption: the caption's own distribution is half and half, so its loss is log 2
    assert loss == pytest.approx(0.5 * torch.tensor([0.0, 2.0]).log().clamp(0).mean().item(), abs=1e-4)


def test_the_learning_rate_warms_up_holds_and_falls() -> None:
    rates = [learning_rate(step, 1000, 1.0, 100) for step in range(1000)]
    assert rates[0] == 0.01
    assert rates[100:650] == [1.0] * 550
    assert rates[-1] < 1e-4
    assert all(a >= b for a, b in pairwise(rates[100:]))


def test_the_shipped_base_builds_a_head_with_distinct_classes() -> None:
    clip = load_clip(SHIPPED)
    head = zero_shot_head(clip, TASKS["zodiac"]().classes, TEMPLATES)
    assert head.shape == (12, 128)
    unit = head / head.norm(dim=1, keepdim=True)
    assert (unit @ unit.T - torch.eye(12)).max() < 0.999


def test_params_yaml_makes_the_lab_that_was_measured() -> None:
    assert Recipe(**yaml.safe_load((ROOT / "params.yaml").read_text())["lab"]) == LAB_RECIPE


def test_the_readme_shows_what_was_measured() -> None:
    table = pd.read_csv(ROOT / "docs" / "lab" / "measured.csv")
    shown = tables(summary(table))
    assert (ROOT / "docs" / "lab" / TABLES).read_text() == shown
    assert shown in (ROOT / "README.md").read_text()


def test_seeds_are_averaged_after_tasks() -> None:
    about = {"tasks": 8, "method": "tsv-m", "accuracy": 0.5}
    rows = [
        {**about, "seed": seed, "task": task, "accuracy_normalized": value}
        for seed, value in enumerate((0.8, 0.9))
        for task in ("digits", "mean")
    ]
    found = summary(pd.DataFrame(rows)).to_dict("records")
    assert found == [
        {"tasks": 8, "method": "tsv-m", "accuracy": 0.5, "accuracy_normalized": pytest.approx(0.85),
         "seed 0": 0.8, "seed 1": 0.9},
    ]  # fmt: skip
    assert "| tsv-m    | 50.0       | 85.0         | 80.0     | 90.0     |" in tables(summary(pd.DataFrame(rows)))


def test_each_suite_holds_the_first_tasks_of_the_next() -> None:
    assert [list(load_suite(f"lab-{size}").tasks) for size in SUITES] == [list(TASKS)[:size] for size in SUITES]


@pytest.mark.slow
def test_the_lab_is_measured_seed_by_seed(tmp_path: Path) -> None:
    recipe = Recipe(steps=2, batch=8, distillation=1, distillation_batch=8, interpolation=0.5)

    def measured() -> Outcome:
        cache = Cache(Store(tmp_path / "store"))
        return measure_lab(tmp_path / "made", 2, cache, lambda title: nullcontext(), sizes=(1, 2), recipe=recipe)

    outcome = measured()
    rows = outcome.table[outcome.table["task"] == "mean"]
    assert sorted(set(zip(rows["tasks"], rows["seed"], strict=True))) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert list(outcome.shown["method"][:2]) == ["zero-shot", "low-rank-sum"]
    made = [open_checkpoint(tmp_path / f"made/seed-{seed}/data/lab/finetuned/digits.safetensors") for seed in (0, 1)]
    assert [one.metadata["origin"]["recipe"]["seed"] for one in made] == [0, 1]
    write_measured(tmp_path / "out", outcome)
    write_measured(tmp_path / "again", measured())
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
