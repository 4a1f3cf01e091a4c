"""Headers say where a file comes from, and verify finds out whether they tell the truth."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsvlib.archive import compress
from tsvlib.checkpoint import Checkpoint, TensorSpec, open_checkpoint, write_checkpoint
from tsvlib.errors import CheckpointError, MismatchError
from tsvlib.git import git_commit
from tsvlib.merging import merge
from tsvlib.provenance import inspect_checkpoint
from tsvlib.verification import verify


def written(path: Path, tensors: dict[str, Tensor], metadata: dict | None = None) -> Checkpoint:
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return write_checkpoint(path, specs, tensors.items(), metadata)


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    torch.manual_seed(0)
    base = {"visual.proj": torch.randn(16, 12), "visual.ln.weight": torch.ones(12)}
    tasks = {}
    for task in ("pets", "cars"):
        tensors = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in base.items()}
        tasks[task] = written(tmp_path / f"{task}.safetensors", tensors)
    return written(tmp_path / "base.safetensors", base), tasks


@pytest.fixture
def merged(tmp_path: Path, inputs: tuple[Checkpoint, dict[str, Checkpoint]]) -> Path:
    merge(*inputs, "tsv-m", out=tmp_path / "merged.safetensors", alpha=0.9)
    return tmp_path / "merged.safetensors"


def test_the_header_tells_all(merged: Path, inputs: tuple[Checkpoint, dict[str, Checkpoint]]) -> None:
    base, tasks = inputs
    header = inspect_checkpoint(open_checkpoint(merged))["provenance"]
    assert header["base"]["digest"] == base.digest
    assert header["tasks"] == {task: tasks[task].digest for task in ("cars", "pets")}
    assert header["sources"]["tasks"]["pets"] == str(merged.parent / "pets.safetensors")
    assert header["method"] == "tsv-m"
    assert header["parameters"]["alpha"] == 0.9
    assert header["key_policy"]["qkv"] == "fused"
    assert set(header["versions"]) == {"tsvlib", "torch", "python"}
    assert len(header["commit"]) == 40


def test_inspect_counts(merged: Path) -> None:
    found = inspect_checkpoint(open_checkpoint(merged))
    assert found["tensors"] == 2
    assert found["parameters"] == 16 * 12 + 12
    assert found["bytes"] == 4 * found["parameters"]
    assert found["dtypes"] == {"F32": 2}


def test_a_true_header(merged: Path) -> None:
    found = verify(merged)
    assert found.verdict == "identical"
    assert found.largest_difference == 0


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_a_true_archive(tmp_path: Path, inputs: tuple[Checkpoint, dict[str, Checkpoint]], dtype: str) -> None:
    compress(*inputs, out=tmp_path / "archive.safetensors", dtype=dtype)
    assert verify(tmp_path / "archive.safetensors").verdict == "identical"


def altered(merged: Path, by: float) -> Path:
    opened = open_checkpoint(merged)
    tensors = {name: tensor.clone() for name, tensor in opened.items()}
    tensors["visual.proj"][0, 0] += by * tensors["visual.proj"].abs().max()
    written(merged.parent / "altered.safetensors", tensors, opened.metadata)
    return merged.parent / "altered.safetensors"


def test_a_file_that_was_changed(merged: Path) -> None:
    found = verify(altered(merged, 0.01))
    assert found.verdict == "different"
    assert found.furthest == "visual.proj"
    assert found.largest_difference == pytest.approx(0.01, rel=0.1)


def test_a_file_from_a_machine_that_rounds_otherwise(merged: Path) -> None:
    assert verify(altered(merged, 2e-6)).verdict == "equal"


def test_an_input_that_changed(merged: Path) -> None:
    pets = dict(open_checkpoint(merged.parent / "pets.safetensors"))
    recorded = open_checkpoint(merged).metadata["tasks"]["pets"]
    changed = written(merged.parent / "pets.safetensors", {**pets, "visual.ln.weight": torch.zeros(12)})
    with pytest.raises(MismatchError) as caught:
        verify(merged)
    assert str(caught.value) == (
        f"{changed.source}: is not what {merged} was made from as task 'pets': its digest is {changed.digest[:12]}…, "
        f"recorded is {recorded[:12]}…. Give the place of the right file."
    )


def test_inputs_that_moved(merged: Path) -> None:
    moved = merged.parent / "moved"
    moved.mkdir()
    for name in ("base", "pets"):
        (merged.parent / f"{name}.safetensors").rename(moved / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        verify(merged)
    found = verify(merged, moved / "base.safetensors", {"pets": moved / "pets.safetensors"})
    assert found.verdict == "identical"


def test_a_task_it_does_not_have(merged: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        verify(merged, tasks={"dogs": "x"})
    assert str(caught.value) == f"{merged}: has no task 'dogs'; it has cars, pets."


def test_a_file_without_provenance(merged: Path) -> None:
    plain = merged.parent / "base.safetensors"
    with pytest.raises(CheckpointError) as caught:
        verify(plain)
    assert str(caught.value) == (
        f"{plain}: its header does not say how it was made (KeyError: 'key_policy'), so it cannot be rebuilt. Files "
        "that 'tsv merge' or 'tsv compress' wrote can."
    )


def test_the_commit_of_what_git_tracks_only(tmp_path: Path) -> None:
    """A program that is installed below somebody's own repository is not at that repository's commit."""
    tracked, installed = tmp_path / "tracked", tmp_path / "installed"
    for folder in (tracked, installed):
        folder.mkdir()
        (folder / "file").touch()
    assert git_commit(tracked) is None
    for words in ("init --quiet", "add tracked", "-c user.email=a@example.org -c user.name=a commit --quiet -m first"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert git_commit(tracked) == head
    assert git_commit(installed) is None
