"""Data sets on the hub: our reader and the real ``datasets`` library see the same, through a stand-in for the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import make_suite
from loopback import Hub, serving
from test_data_kinds import EXAMPLES, as_parquet, as_webdataset, content

from tsvlib.candidate import zero_shot
from tsvlib.cli.fetch import fetch
from tsvlib.cli.options import Sources
from tsvlib.data import DataDescription
from tsvlib.errors import DataError, UnreachableError
from tsvlib.evaluate import Evaluator
from tsvlib.images import class_names, load_images
from tsvlib.suite import load_suite

pytestmark = pytest.mark.services
LOCATION = "hf://datasets/lab/pictures"


def files_of(folder: Path, below: str = "") -> dict[str, bytes]:
    return {
        f"{below}{file.relative_to(folder).as_posix()}": file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    return as_parquet(tmp_path / "parquet")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub({}, repository="lab/pictures", kind="datasets")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("TSV_STORE", str(tmp_path / "store"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub


def by_the_datasets_library(hub: Hub, home: Path, split: str, config: str | None = None) -> set[tuple[str, int]]:
    """(SHA-256 of the pixels, label) as ``datasets.load_dataset`` gives them, which fixes its hub when imported."""
    code = (
        "import datasets, hashlib, json, sys\n"
        "name, config, split = json.loads(sys.argv[1])\n"
        "rows = datasets.load_dataset(name, config, split=split)\n"
        "image, label = ('png', 'cls') if 'png' in rows.features else ('image', 'label')\n"
        "found = [(hashlib.sha256(row[image].tobytes()).hexdigest(), row[label]) for row in rows]\n"
        "print(json.dumps(found))\n"
    )
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | settings
    asked = [sys.executable, "-c", code, json.dumps(["lab/pictures", config, split])]
    found = subprocess.run(asked, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    return {(digest, label) for digest, label in json.loads(found.stdout)}


def by_us(split: str, config: str | None = None) -> set[tuple[str, int]]:
    import hashlib

    from tsvlib.data.decoding import decode_image

    images = load_images(DataDescription(location=LOCATION, config=config), split)
    pixels = [hashlib.sha256(decode_image(one).tobytes()).hexdigest() for one in images.encoded()]
    return set(zip(pixels, images.labels.tolist(), strict=True))


CARD = """---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train-*}
  - {split: test, path: small/test-*}
- config_name: large
  data_files:
  - {split: train, path: large/**}
---
# Pictures
"""


def layouts(tmp_path: Path, parquet: Path) -> dict[str, dict[str, bytes]]:
    shards = files_of(as_webdataset(tmp_path / "shards"))
    return {
        "data folder": files_of(parquet, "data/"),
        "top folder": files_of(parquet),
        "card": files_of(parquet, "small/") | {"README.md": CARD.encode()},
        "shards": shards | {"README.md": b"# Pictures"},
    }


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["data folder", "top folder", "card", "shards"])
def test_the_datasets_library_sees_the_same(hub: Hub, tmp_path: Path, parquet: Path, layout: str) -> None:
    hub.files = layouts(tmp_path, parquet)[layout]
    config = "small" if layout == "card" else None
    for split in ("train", "test"):
        theirs = by_the_datasets_library(hub, tmp_path / "home", split, config)
        ours = by_us(split, config) | (by_us("validation", config) if split == "train" else set())
        assert ours == theirs
        assert len(ours) == len(EXAMPLES[split])


def test_only_the_split_that_is_asked_for_is_fetched(hub: Hub, parquet: Path) -> None:
    hub.files = files_of(parquet, "data/")
    assert content(load_images(LOCATION, "test")) == set(EXAMPLES["test"])
    assert class_names(LOCATION) == ["black cat", "white dog"]
    fetched = [path for (_, path), _ in hub.asked.items() if path.endswith(".parquet")]
    assert fetched
    assert all("test-" in path for path in fetched)


def test_the_hubs_own_conversion(hub: Hub, parquet: Path) -> None:
    """Of a repository that only has a script, the hub offers parquet files on a branch."""
    hub.files = {"pictures.py": b"raise SystemExit", "README.md": b"# Pictures"}
    converted = files_of(parquet)
    hub.branches["refs/convert/parquet"] = {
        f"default/{name.partition('-')[0]}/0000.parquet": body for name, body in converted.items()
    }
    assert content(load_images(LOCATION, "test")) == set(EXAMPLES["test"])


def test_shards_bring_their_class_names(hub: Hub, tmp_path: Path) -> None:
    hub.files = files_of(as_webdataset(tmp_path / "shards"))
    assert class_names(LOCATION) == ["black cat", "white dog"]


def test_a_pinned_revision(hub: Hub, parquet: Path) -> None:
    hub.files = files_of(parquet)
    assert len(load_images(f"{LOCATION}@v1", "test")) == 9
    with pytest.raises(DataError, match=r"lab/pictures has no revision 'v7'\. Check its branches and tags"):
        load_images(f"{LOCATION}@v7", "test")


def test_what_was_fetched_is_there_offline(hub: Hub, parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = files_of(parquet)
    load_images(LOCATION, "test")
    hub.asked.clear()
    monkeypatch.setenv("TSV_OFFLINE", "1")
    assert content(load_images(LOCATION, "test")) == set(EXAMPLES["test"])
    with pytest.raises(UnreachableError, match=r"lab/pictures: is not in the store, and TSV_OFFLINE says"):
        load_images(LOCATION, "train")
    assert not hub.asked


def test_a_download_that_breaks_goes_on(hub: Hub, parquet: Path) -> None:
    hub.files = files_of(parquet)
    name = next(name for name in hub.files if name.startswith("test"))
    hub.cut_after[f"/datasets/lab/pictures/resolve/{hub.commit}/{name}"] = [100]
    assert content(load_images(LOCATION, "test")) == set(EXAMPLES["test"])


REFUSALS = {
    "nothing there": (
        {"README.md": b"soon"},
        None,
        "hf://datasets/lab/pictures: no parquet or tar file of the split 'test' there. Name what it is called under "
        "'splits' of the suite's data, or make it ('dvc repro').",
    ),
    "which config": (
        {"README.md": CARD.encode(), "small/train-0.parquet": b"", "large/0.parquet": b""},
        None,
        "hf://datasets/lab/pictures: has several; name one as 'config'. There are: small, large.",
    ),
    "unknown config": (
        {"small/test.parquet": b"", "large/test.parquet": b""},
        "smal",
        "hf://datasets/lab/pictures: has no configuration 'smal'. Did you mean 'small'? There are: large, small.",
    ),
    "damaged": ({"test.parquet": b"PAR1 no"}, None, "cannot be read as parquet"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_read_is_told(hub: Hub, case: str) -> None:
    files, config, message = REFUSALS[case]
    hub.files = files
    hub.branches["refs/convert/parquet"] = {}
    with pytest.raises(DataError) as caught:
        load_images(DataDescription(location=LOCATION, config=config), "test", ["a", "b"])
    assert message in str(caught.value)


def test_unknown_data_sets_are_told(hub: Hub) -> None:
    with pytest.raises(DataError, match=r"hf://datasets/lab/nothing: the hub has no repository lab/nothing, or it is"):
        load_images("hf://datasets/lab/nothing", "test")


def test_a_model_is_no_data_set() -> None:
    with pytest.raises(ValueError, match="is a model on the hub; a data set is hf://datasets/"):
        DataDescription(location="hf://lab/encoder")


def test_a_suite_is_fetched_once_and_then_evaluated_offline(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_suite(tmp_path / "suite")
    hub.files = files_of(tmp_path / "suite" / "side", "data/")
    here = Evaluator(load_suite(file), "test").accuracies_of([zero_shot(load_suite(file))])["zero-shot"]["side"]
    described = yaml.safe_load(file.read_text())
    on_hub = {"data": {"hub": "lab/pictures"}, "classes": ["left", "right"], "checkpoint": "side.safetensors"}
    file.write_text(yaml.safe_dump(described | {"tasks": {"side": on_hub}}))
    fetch(sources=Sources(suite=str(file)), data=True)
    assert "side: 40 train, 40 test images" in capsys.readouterr().out
    hub.asked.clear()
    monkeypatch.setenv("TSV_OFFLINE", "1")
    suite = load_suite(file)
    assert Evaluator(suite, "test").accuracies_of([zero_shot(suite)])["zero-shot"] == {"side": here}
    assert len(suite.images("side", "validation")) == 4
    assert not hub.asked
