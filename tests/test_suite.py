"""Suite files: what is read, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_the_packaged_suites_are_prefixes_of_each_other() -> None:
    assert packaged_suites()[:3] == ["lab-14", "lab-20", "lab-8"]
    eight, fourteen, twenty = (list(load_suite(f"lab-{n}").tasks) for n in (8, 14, 20))
    assert (len(eight), len(fourteen), len(twenty)) == (8, 14, 20)
    assert fourteen[:8] == eight
    assert twenty[:14] == fourteen


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
