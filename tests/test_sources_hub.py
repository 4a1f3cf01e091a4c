"""The Hugging Face hub and open_clip's weights, by the real client library against a stand-in for the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from loopback import Hub, serving

from tsvlib.checkpoint import open_checkpoint, open_location
from tsvlib.errors import CheckpointError, UnreachableError
from tsvlib.sources import locate

pytestmark = pytest.mark.services
TENSORS = {"visual.proj": torch.arange(6.0).reshape(2, 3), "visual.big": torch.arange(100_000.0)}
WEIGHTS = safetensors.torch.save(TENSORS)
OTHER = safetensors.torch.save({"x": torch.ones(2)})
COMMIT = Hub.commit


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {"model.safetensors": WEIGHTS, "config.json": b"{}", "old/other.safetensors": OTHER}
    with serving(Hub(files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("TSV_STORE", str(tmp_path / "store"))
        yield hub


@pytest.mark.parametrize(
    "uri",
    ["hf://lab/encoder", "hf://lab/encoder@v1", f"hf://lab/encoder@{COMMIT}", "hf://lab/encoder@v1/model.safetensors"],
)
def test_a_repository_gives_its_weights(hub: Hub, uri: str) -> None:
    opened = open_checkpoint(uri)
    assert opened.source == uri
    assert all(torch.equal(opened[name], tensor) for name, tensor in TENSORS.items())
    assert opened.path.name == hashlib.sha256(WEIGHTS).hexdigest()


@pytest.mark.parametrize("uri", ["hf://lab/encoder/old/other.safetensors", "hf://lab/encoder/old"])
def test_a_file_or_folder_of_a_repository(hub: Hub, uri: str) -> None:
    assert set(open_checkpoint(uri)) == {"x"}


def test_a_commit_is_not_asked_about_again(hub: Hub) -> None:
    open_checkpoint(f"hf://lab/encoder@{COMMIT}")
    hub.asked.clear()
    open_checkpoint(f"hf://lab/encoder@{COMMIT}")
    assert not hub.asked


def test_a_branch_is_asked_about_but_not_fetched_again(hub: Hub) -> None:
    open_checkpoint("hf://lab/encoder")
    hub.asked.clear()
    open_checkpoint("hf://lab/encoder@main")
    assert dict(hub.asked) == {("GET", "/api/models/lab/encoder/revision/main"): 1}


def test_the_header_alone_is_read_for_planning(hub: Hub) -> None:
    opened = open_location(locate("hf://lab/encoder"))
    assert opened.specs["visual.big"].shape == (100_000,)
    assert hub.bytes_sent < len(WEIGHTS) / 2


def test_shards_come_along(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    weight_map = {name: f"{number}.safetensors" for number, name in enumerate(TENSORS)}
    for name, file in weight_map.items():
        hub.files[file] = safetensors.torch.save({name: TENSORS[name]})
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    opened = open_checkpoint("hf://lab/encoder")
    assert all(torch.equal(opened[name], tensor) for name, tensor in TENSORS.items())


def test_a_damaged_file_is_told(hub: Hub) -> None:
    """The hub's client checks sizes only."""
    location = locate("hf://lab/encoder")
    hub.files["model.safetensors"] = WEIGHTS[:-1] + b"!"
    from tsvlib.downloads import Downloads

    with pytest.raises(CheckpointError, match=r"model\.safetensors: its content has the SHA-256 .* changed or damaged"):
        Downloads().fetch(location.file(location.main))


REFUSALS = {
    "hf://lab/nothing": (
        "hf://lab/nothing: the hub has no repository lab/nothing, or it is private; check the name, or set HF_TOKEN."
    ),
    "hf://lab/encoder@v9": "hf://lab/encoder@v9: lab/encoder has no revision 'v9'. Check its branches and tags.",
    "hf://lab/encoder/no.pt": (
        "hf://lab/encoder/no.pt: the repository has no file 'no.pt'. It has: config.json, model.safetensors, "
        "old/other.safetensors."
    ),
    "hf://encoder": ("hf://encoder: not an address on the hub; write hf://organisation/repository[@revision][/file]."),
}


@pytest.mark.parametrize("uri", REFUSALS)
def test_what_is_not_there(hub: Hub, uri: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(uri)
    assert str(caught.value) == REFUSALS[uri]


def test_a_repository_without_weights(hub: Hub) -> None:
    hub.files = {"README.md": b"soon"}
    with pytest.raises(CheckpointError, match=r"hf://lab/encoder: holds no weights: no \.safetensors"):
        open_checkpoint("hf://lab/encoder")


def test_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("TSV_STORE", str(tmp_path))
    with pytest.raises(UnreachableError, match=r"hf://lab/encoder: does not answer"):
        open_checkpoint("hf://lab/encoder")


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnreachableError, match="is not in the store, and HF_HUB_OFFLINE says that this machine"):
        open_checkpoint("hf://lab/encoder")
    assert not hub.asked


def test_weights_that_open_clip_knows(hub: Hub) -> None:
    hub.repository = "timm/vit_base_patch32_clip_224.openai"
    hub.files = {"open_clip_model.safetensors": WEIGHTS, "model.safetensors": OTHER, "pytorch_model.bin": OTHER}
    location = locate("open-clip://ViT-B-32-quickgelu/openai")
    assert location.about["activation"] == "quick_gelu"
    assert location.about["image_size"] == 224
    assert set(open_checkpoint("open-clip://ViT-B-32-quickgelu/openai")) == set(TENSORS)


OPEN_CLIP_REFUSALS = {
    "open-clip://ViT-B-32/openai": (
        "open-clip://ViT-B-32/openai: the weights 'openai' were trained with quick_gelu, but the model ViT-B-32 "
        "computes gelu, which changes every feature without an error. Write open-clip://ViT-B-32-quickgelu/openai."
    ),
    "open-clip://ViT-B-32-quickgelu/laion2b_e16": (
        "open-clip://ViT-B-32-quickgelu/laion2b_e16: open_clip has no weights 'laion2b_e16' for ViT-B-32-quickgelu."
    ),
    "open-clip://ViT-B-33/openai": (
        "open-clip://ViT-B-33/openai: open_clip knows no model 'ViT-B-33'. Did you mean 'ViT-B-32'?"
    ),
    "open-clip://ViT-B-32": (
        "open-clip://ViT-B-32: write it as open-clip://MODEL/TAG, such as open-clip://ViT-B-32-quickgelu/openai."
    ),
}


@pytest.mark.parametrize("uri", OPEN_CLIP_REFUSALS)
def test_what_open_clip_does_not_know(uri: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(uri)
    assert str(caught.value).startswith(OPEN_CLIP_REFUSALS[uri])
