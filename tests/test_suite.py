"""Suite files: what is read, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_suite

from tsvlib.errors import DataError, SuiteError
from tsvlib.suite import Suite, load_suite, packaged_suites

GOOD = """
name: mine
model: model/
base: base.safetensors
tasks:
  pets: {checkpoint: pets.safetensors, data: pets}
"""


def loaded(folder: Path, text: str) -> Suite:
    file = folder / "suite.yaml"
    file.write_text(text)
    return load_suite(file)


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    suite = loaded(tmp_path, GOOD)
    assert suite.checkpoints == {"pets": str(tmp_path / "pets.safetensors")}
    assert suite.clip_model == tmp_path / "model"


def test_uris_stand_for_themselves(tmp_path: Path) -> None:
    suite = loaded(tmp_path, GOOD.replace("pets.safetensors", "hf://org/pets"))
    assert suite.checkpoints == {"pets": "hf://org/pets"}


@pytest.mark.parametrize("model", ["lab", "vit-b-32", "vit-b-16", "vit-l-14"])
def test_the_packaged_suites_are_prefixes_of_each_other(model: str) -> None:
    eight, fourteen, twenty = (list(load_suite(f"{model}-{n}").tasks) for n in (8, 14, 20))
    assert (len(eight), len(fourteen), len(twenty)) == (8, 14, 20)
    assert fourteen[:8] == eight
    assert twenty[:14] == fourteen


PUBLIC = [name for name in packaged_suites() if name.startswith("vit-")]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_suites_never_mix_families(name: str) -> None:
    suite = load_suite(name)
    assert len(PUBLIC) == 9
    owners = {uri.removeprefix("hf://").partition("/")[0] for uri in (suite.base, *suite.checkpoints.values())}
    assert owners == {suite.family}
    model = {uri.partition("/")[2].partition("/")[2].rpartition("-")[0] for uri in suite.checkpoints.values()}
    assert len(model) == 1
    assert suite.base.removesuffix("-base").endswith(next(iter(model)))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_suites_use_the_activation_of_openai(name: str) -> None:
    import open_clip

    suite = load_suite(name)
    tag = open_clip.get_pretrained_cfg(suite.model, "openai")
    assert suite.weights == f"open-clip://{suite.model}/openai"
    assert tag["quick_gelu"]
    assert open_clip.get_model_config(suite.model)["quick_gelu"]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_suites_use_the_papers_protocol(name: str) -> None:
    for task in load_suite(name).tasks.values():
        assert task.data.on_hub
        assert task.data.splits["validation"] is None  # cut from train
        assert set(task.data.sizes) == {"test"}


def test_a_suite_extends_another(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(GOOD)
    file = tmp_path / "more.yaml"
    file.write_text(
        "name: more\nextends: suite.yaml\ntasks:\n  pets:\n  dogs: {checkpoint: d.pt, data: dogs}\n  "
        "mnist: {checkpoint: m.pt, dataset: mnist, templates: ['{}!']}\n"
    )
    suite = load_suite(file)
    assert (suite.name, suite.model) == ("more", "model/")
    assert list(suite.tasks) == ["dogs", "mnist"]  # pets is taken out
    assert suite.task("mnist").templates == ["{}!"]
    assert suite.task("mnist").classes == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("suite.yaml", "extends itself by way of 'suite.yaml'"),
        ("../other.yaml", "neither a packaged suite nor a file of the same folder"),
        ("vit-b-32-9", r"extends 'vit-b-32-9', which is neither .* Did you mean 'vit-b-32-8'"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        loaded(tmp_path, f"name: mine\nextends: {name}\n")


def test_hub_data_in_short(tmp_path: Path) -> None:
    suite = loaded(tmp_path, GOOD.replace("data: pets", "data: {hub: org/pets, splits: {test: val}}"))
    assert suite.data("pets").location == "hf://datasets/org/pets"


def test_suites_survive_json(tmp_path: Path) -> None:
    classes = "data: pets, classes: {0: zero, one: one}"
    suite = loaded(tmp_path, GOOD.replace("data: pets", classes))
    assert Suite.model_validate_json(suite.model_dump_json()) == suite.at(Path())
    assert suite.classes("pets") == ["zero", "one"]


def test_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(SuiteError, match=r"suite 'lab-9': neither a file nor a packaged suite\. Did you mean 'lab-"):
        load_suite("lab-9")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        (GOOD + "  pets: {checkpoint: a, data: b}\n", "key 'pets' stands twice; give each task its own name"),
        (GOOD + "nmae: x\n", "nmae: Extra inputs are not permitted"),
        ("name: mine\nmodel: m\nbase: b\n", "tasks: Field required"),
        ("name: mine\nmodel: m\nbase: b\ntasks: {}\n", "tasks: Dictionary should have at least 1 item"),
        (GOOD.replace("data: pets", "data: pets, templates: [a photo]"), "template 'a photo' has no {} for the class"),
        (GOOD.replace("data: pets", "data: pets, templates: ['{0} {1}']"), "must have one {} for the class name"),
        (GOOD.replace("data: pets", "dataset: minst"), "dataset 'minst': is not known. Did you mean 'mnist'?"),
        (GOOD.replace("data: pets", "data: {hub: pets}"), "is no data set on the hub; write hf://datasets/"),
        (GOOD.replace("data: pets", "data: {folder: pets}"), "tasks.pets.data.folder: Extra inputs are not permitted"),
        (GOOD.replace("data: pets", "data: pets, classes: [yes, no]"), "tasks.pets.classes"),
        (GOOD + "key_policy: {qkv: joined}\n", "key_policy.qkv: Input should be 'fused' or 'split'"),
        ("- a\n- b\n", "Input should be a valid dictionary"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SuiteError) as caught:
        loaded(tmp_path, text)
    assert message in str(caught.value)
    assert "suite.yaml" in str(caught.value)


def test_unknown_task(suite: Suite) -> None:
    with pytest.raises(SuiteError, match=r"suite 'tiny': no task 'brigth'\. Did you mean 'bright'\?"):
        suite.task("brigth")


def test_classes_come_from_the_data(suite: Suite) -> None:
    assert suite.classes("bright") == ["black", "white"]


def test_missing_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pets: no such folder"):
        loaded(tmp_path, GOOD).classes("pets")


def test_a_suites_key_policy_decides_the_merge(tmp_path: Path) -> None:
    from tsvlib.checkpoint import open_checkpoint
    from tsvlib.cli.merge import merge
    from tsvlib.cli.options import Caching, Printing, Sources

    file = make_suite(tmp_path)
    digests = set()
    for qkv in ("fused", "split"):
        file.write_text(file.read_text().partition("key_policy")[0] + f"key_policy: {{qkv: {qkv}}}\n")
        out = tmp_path / f"{qkv}.safetensors"
        merge(sources=Sources(suite=str(file)), out=out, caching=Caching(cache=False), printing=Printing(quiet=True))
        merged = open_checkpoint(out)
        assert merged.metadata["key_policy"]["qkv"] == qkv
        digests.add(merged.digest)
    assert len(digests) == 2
