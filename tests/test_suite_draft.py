"""``tsv suites``: drafting a suite from two folders, and checking one before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import make_suite
from pydantic import BaseModel
from test_data_kinds import as_folder, as_parquet, as_webdataset
from test_decoding import WHOLE

from tsvlib.data import DataDescription
from tsvlib.errors import SuiteError
from tsvlib.images import load_images
from tsvlib.suite import Suite, SuiteTask, load_suite
from tsvlib.suite_check import check_suite
from tsvlib.suite_draft import draft_suite


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    """What a user has: models/{base,bright-finetuned,...}.safetensors and images/{bright,side,...}."""
    made = make_suite(tmp_path / "made").parent
    (tmp_path / "models").mkdir()
    (tmp_path / "images").mkdir()
    shutil.move(made / "model", tmp_path / "models" / "clip")
    shutil.move(made / "base.safetensors", tmp_path / "models" / "base.safetensors")
    shutil.move(made / "bright.safetensors", tmp_path / "models" / "ViT-tiny_bright-finetuned.safetensors")
    shutil.move(made / "side.safetensors", tmp_path / "models" / "Side.safetensors")
    for task in ("bright", "side"):
        shutil.move(made / task, tmp_path / "images" / task)
    return tmp_path


def written(folder: Path, **options: str) -> Path:
    out = folder / "mine.yaml"
    out.write_text(draft_suite(folder / "models", folder / "images", out, **options).text)
    return out


def test_a_draft_is_a_suite_that_checks(laid_out: Path) -> None:
    suite = load_suite(written(laid_out))
    assert (suite.name, suite.model, suite.base) == ("mine", "models/clip", "models/base.safetensors")
    assert suite.task("bright").checkpoint == "models/ViT-tiny_bright-finetuned.safetensors"
    assert suite.classes("bright") == ["black", "white"]
    found = check_suite(suite)
    assert found.problems == []
    assert found.tasks["side"].images == {"train": 36, "validation": 4, "test": 40}
    assert found.merge["matrices"] == 10  # two blocks of four, the projection, the positional embedding


def test_what_has_no_match_is_listed(laid_out: Path) -> None:
    shutil.move(laid_out / "models" / "Side.safetensors", laid_out / "models" / "mystery.safetensors")
    out = laid_out / "mine.yaml"
    draft = draft_suite(laid_out / "models", laid_out / "images", out)
    assert (draft.tasks, draft.unmatched_checkpoints, draft.unmatched_data) == (["bright"], ["mystery"], ["side"])
    assert "# no data is named like these checkpoints: mystery\n" in draft.text
    assert "# no checkpoint is named like these data sets: side\n" in draft.text


def test_public_data_sets_are_known_by_name(laid_out: Path) -> None:
    shutil.copy(laid_out / "models" / "Side.safetensors", laid_out / "models" / "cifar10_lr1e-5.safetensors")
    suite = load_suite(written(laid_out))
    assert suite.task("cifar10").dataset == "cifar10"
    assert suite.task("cifar10").data.location == "hf://datasets/tanganke/cifar10"


def test_without_fine_tunes_every_data_set_is_a_task_to_come(laid_out: Path) -> None:
    for file in ("Side", "ViT-tiny_bright-finetuned"):
        (laid_out / "models" / f"{file}.safetensors").unlink()
    out = laid_out / "mine.yaml"
    draft = draft_suite(laid_out / "models", laid_out / "images", out)
    assert draft.tasks == ["bright", "side"]
    assert draft.notes == [f"there are no fine-tunes yet; 'tsv finetune --suite {out} --task bright' makes one."]


def test_every_kind_of_data_is_found(laid_out: Path) -> None:
    for name, make in {"birds": as_folder, "fish": as_parquet, "frogs": as_webdataset}.items():
        make(laid_out / "images" / name)
        shutil.copy(laid_out / "models" / "Side.safetensors", laid_out / "models" / f"{name}.safetensors")
    suite = load_suite(written(laid_out))
    assert set(suite.tasks) == {"bright", "side", "birds", "fish", "frogs"}
    for name in ("birds", "fish", "frogs"):
        assert suite.classes(name) == ["black cat", "white dog"]
        assert len(suite.images(name, "test")) == 9


def test_names_that_yaml_would_misread_are_quoted(laid_out: Path) -> None:
    data = as_folder(laid_out / "images" / "no")
    (data / "train" / "black_cat").rename(data / "train" / "yes: 1 #")
    shutil.copy(laid_out / "models" / "Side.safetensors", laid_out / "models" / "no.safetensors")
    suite = load_suite(written(laid_out))
    assert suite.classes("no") == ["black cat", "white dog", "yes: 1 #"]


REFUSALS = {
    "which is the base? Name it with --base, or call it base.safetensors": ("models/base.safetensors", {}),
    "which model is it? Name it with --model, as open_clip does": ("models/clip", {}),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_what_cannot_be_guessed_is_asked_for(laid_out: Path, message: str) -> None:
    missing = laid_out / REFUSALS[message][0]
    shutil.move(missing, laid_out / "elsewhere")
    with pytest.raises(SuiteError, match=message.replace("?", r"\?")):
        written(laid_out)


def test_two_checkpoints_for_one_data_set(laid_out: Path) -> None:
    shutil.copy(laid_out / "models" / "Side.safetensors", laid_out / "models" / "side-again.safetensors")
    with pytest.raises(SuiteError, match="checkpoint is named like the data set 'side': Side, side-again"):
        written(laid_out)


def test_nothing_matches(laid_out: Path) -> None:
    for task in ("bright", "side"):
        shutil.rmtree(laid_out / "images" / task)
    with pytest.raises(SuiteError, match=r"no checkpoint is named like a data set .*; data sets: none\. Give both"):
        written(laid_out)


def test_models_of_open_clip_bring_their_weights(laid_out: Path) -> None:
    suite = load_suite(written(laid_out, model="ViT-B-32-quickgelu"))
    assert suite.clip_model == "ViT-B-32-quickgelu"
    assert suite.clip_weights == "open-clip://ViT-B-32-quickgelu/openai"


def test_a_check_tells_everything_at_once(laid_out: Path) -> None:
    out = written(laid_out)
    (laid_out / "models" / "Side.safetensors").unlink()
    (laid_out / "images" / "bright" / "classes.json").write_text(json.dumps(["black"]))
    (laid_out / "models" / "clip" / "open_clip_config.json").unlink()
    problems = "\n".join(check_suite(load_suite(out)).problems)
    for part in ("no open_clip_config.json there", "Side.safetensors: no such checkpoint", "label 1 has no class"):
        assert part in problems


def test_a_check_of_images_names_each_bad_one(tmp_path: Path) -> None:
    as_folder(tmp_path / "images" / "side")
    for number in ("04", "07"):
        file = next((tmp_path / "images" / "side" / "test").rglob(f"{number}.png"))
        file.write_bytes(WHOLE[:200])
    suite = load_suite(make_suite(tmp_path / "made"))
    tasks = {"side": suite.task("side").model_copy(update={"data": suite.data("side").model_copy(
        update={"location": str(tmp_path / "images" / "side")})})}  # fmt: skip
    found = check_suite(suite.model_copy(update={"tasks": tasks}), images=True)
    named = [problem for problem in found.problems if "cannot be decoded" in problem]
    assert len(named) == 2
    assert "test/black_cat/04.png cannot be decoded" in named[0]


DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("model", [Suite, SuiteTask, DataDescription])
def test_every_entry_is_documented(model: type[BaseModel]) -> None:
    text = (DOCS / "suites.md").read_text()
    assert [name for name in model.model_fields if f"`{name}`" not in text] == []


@pytest.mark.data
def test_the_example_over_real_images_is_a_suite(real_images: Path) -> None:
    suite = load_suite(Path(__file__).parents[1] / "examples" / "real-images.yaml")
    for name in suite.tasks:
        here = suite.data(name).model_copy(update={"location": str(real_images / name)})
        images = load_images(here, "test", suite.task(name).classes)
        assert len(images) == images.expected
        images.probe()


@pytest.mark.parametrize("number", [8, 14, 20])
@pytest.mark.parametrize("model", ["vit-b-32", "vit-b-16", "vit-l-14"])
def test_public_suites_check_and_plan_offline(model: str, number: int) -> None:
    suite = load_suite(f"{model}-{number}")
    found = check_suite(suite)
    assert found.problems == []
    assert len(found.tasks) == number
    assert found.merge["matrices"] == (98 if model == "vit-l-14" else 50)
    assert found.notes == [
        f"{number + 1} of {number + 1} checkpoints lie elsewhere; --online reads their headers.",
        f"{number} of {number} data sets lie elsewhere; --online fetches them.",
    ]
