"""Sharded output: the base's division, no broken checkpoint after a kill, and memory bounded by one parameter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tsvlib.checkpoint import Checkpoint, TensorSpec, open_checkpoint, write_checkpoint
from tsvlib.errors import CheckpointError, MismatchError
from tsvlib.merging import merge
from tsvlib.writing import shard_layout

LAYERS = 6


def model(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {f"layers.{i}.weight": torch.randn(12, 8, generator=random).to(dtype) for i in range(LAYERS)}


def specs_of(tensors: dict[str, Tensor]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def sharded(folder: Path, tensors: dict[str, Tensor], per_shard: int = 2) -> Checkpoint:
    """A checkpoint in shards of a few tensors each, as another library might have divided it."""
    names = list(tensors)
    template = Checkpoint.from_tensors(tensors)
    template.shards = {name: f"part-{names.index(name) // per_shard}.safetensors" for name in names}
    index = folder / "model.safetensors.index.json"
    return write_checkpoint(index, specs_of(tensors), tensors.items(), like=template)


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    folders = [tmp_path / name for name in ("base", "a", "b")]
    base, *tasks = [sharded(folder, model(seed)) for seed, folder in enumerate(folders)]
    return base, dict(zip("ab", tasks, strict=True))


def test_the_output_is_divided_as_the_base(tmp_path: Path, inputs: tuple[Checkpoint, dict[str, Checkpoint]]) -> None:
    whole = merge(*inputs, "tsv-m", out=tmp_path / "whole.safetensors")
    parts = merge(*inputs, "tsv-m", out=tmp_path / "out" / "model.safetensors.index.json")
    assert parts.digest == whole.digest
    assert parts.shards == inputs[0].shards
    assert parts.metadata == whole.metadata
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == whole.nbytes


def test_an_undivided_base_is_divided_by_size(tmp_path: Path) -> None:
    tensors = model(0)
    layout = shard_layout(tmp_path / "model.safetensors.index.json", specs_of(tensors), shard_bytes=2 * 12 * 8 * 4)
    assert list(dict.fromkeys(layout.values())) == [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    written = write_checkpoint(tmp_path / "model.safetensors.index.json", specs_of(tensors), tensors.items())
    assert set(written.shards.values()) == {"model-00001-of-00001.safetensors"}


def test_transformers_reads_the_shards(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    network = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    )
    network.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = network.state_dict()
    sharded(tmp_path, {name: state[name] for name in state if not name.endswith("position_ids")}, per_shard=5)
    again = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], state[name]) for name in state)


def test_an_interrupted_merge_goes_on_where_it_stopped(
    tmp_path: Path, inputs: tuple[Checkpoint, dict[str, Checkpoint]]
) -> None:
    out = tmp_path / "out" / "model.safetensors.index.json"
    done: list[str] = []

    def stop_midway(name: str, _: int, total: int) -> None:
        done.append(name)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(*inputs, "tsv-m", out=out, progress=stop_midway, threads=1)
    assert [path.name for path in out.parent.iterdir()] == ["part-0.safetensors"]
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        open_checkpoint(out)
    again: list[str] = []
    merged = merge(*inputs, "tsv-m", out=out, progress=lambda name, *_: again.append(name))
    assert sorted(again) == [f"layers.{i}.weight" for i in range(2, LAYERS)]
    assert merged.digest == merge(*inputs, "tsv-m").digest


def test_shards_of_another_merge_are_not_taken_over(
    tmp_path: Path, inputs: tuple[Checkpoint, dict[str, Checkpoint]]
) -> None:
    out = tmp_path / "out" / "model.safetensors.index.json"
    merge(*inputs, "tsv-m", out=out)
    counted: list[str] = []
    merged = merge(*inputs, "tsv-m", out=out, alpha=0.5, progress=lambda name, *_: counted.append(name))
    assert len(counted) == LAYERS
    assert merged.digest == merge(*inputs, "tsv-m", alpha=0.5).digest


def test_a_tensor_that_never_comes(tmp_path: Path) -> None:
    tensors = model(0)
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(MismatchError, match=r"key 'layers\.5\.weight' was not given"):
        write_checkpoint(index, specs_of(tensors), list(tensors.items())[:-1])
    assert list(tmp_path.iterdir()) == []


def test_remains_of_killed_processes_are_cleared(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    remains = tmp_path / f".w.safetensors.{killed.pid}.partial"
    alive = tmp_path / f".w.safetensors.{os.getppid()}.partial"
    for path in (remains, alive):
        path.write_bytes(b"half")
    write_checkpoint(tmp_path / "w.safetensors", {"x": TensorSpec((1,), torch.float32)}, [("x", torch.ones(1))])
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors", alive.name}


KILLED = """
import os, signal, sys, pathlib
from tsvlib.checkpoint import open_checkpoint
from tsvlib.merging import merge
folder = pathlib.Path(sys.argv[1])
base, *tasks = [open_checkpoint(folder / name) for name in ("base", "a", "b")]
def stop(name, done, total):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
merge(base, dict(zip("ab", tasks)), out=folder / "out" / "model.safetensors.index.json", progress=stop, threads=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", range(1, LAYERS + 1))
def test_killed_at_any_parameter(tmp_path: Path, inputs: tuple[Checkpoint, dict[str, Checkpoint]], when: int) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(when)], env=os.environ | {"PYTHONPATH": "."}
    )
    assert killed.returncode == -9
    out = tmp_path / "out" / "model.safetensors.index.json"
    assert not out.exists()
    for shard in out.parent.glob("part-*"):
        open_checkpoint(shard)
    assert merge(*inputs, out=out).digest == merge(*inputs).digest
    assert not list(out.parent.glob(".*"))


SCALED_DOWN = """
import json, sys, pathlib
from benchmarks import scale
folder = pathlib.Path(sys.argv[1])
scale.write_models(folder, scale.Size(layers=12, width=1024, inner=2048, keys=256))
print(json.dumps(scale.merge_models(folder, folder / "out" / scale.INDEX, "task-arithmetic", 1)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    # so that the allocator returns what was freed at once, and the peak is what the merge holds
    environment = os.environ | {"PYTHONPATH": ".", "MALLOC_MMAP_THRESHOLD_": "65536"}
    ran = subprocess.run([sys.executable, "-c", SCALED_DOWN, str(tmp_path)], env=environment, capture_output=True)
    found = json.loads(ran.stdout)
    assert found["shards"] == 12
    assert found["peak_bytes"] < found["planned_bytes"] < found["input_bytes"]
