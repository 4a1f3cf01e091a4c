"""Every reader gives what the library that wrote the file gives, bit for bit."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tsvlib.checkpoint import TensorSpec, open_checkpoint, write_checkpoint
from tsvlib.errors import CheckpointError
from tsvlib.tensors import DTYPE_NAMES, tensor_bytes

LEGACY = [pytest.param(False, id="zip"), pytest.param(True, id="legacy")]


def save(value: object, path: Path, legacy: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert found[name].dtype == tensor.dtype
        assert bytes(tensor_bytes(found[name])) == bytes(tensor_bytes(tensor)), name


def a_tensor_of(dtype: torch.dtype) -> Tensor:
    return torch.arange(-7, 17).remainder(2 if dtype == torch.bool else 11).reshape(4, 6).to(dtype)


@pytest.mark.parametrize("legacy", LEGACY)
def test_a_state_dict_reads_as_torch_reads_it(tmp_path: Path, legacy: bool) -> None:
    whole = torch.randn(6, 8)
    tensors = {
        "matrix": whole,
        "transposed": whole.T,
        "window": whole[1:4, 2:7],
        "column": whole[:, 3],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "parameter": nn.Parameter(torch.randn(3)),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }
    path = save(tensors, tmp_path / "weights.pt", legacy)
    with torch.no_grad():
        assert_same(dict(open_checkpoint(path)), torch.load(path, weights_only=True))


@pytest.mark.parametrize("legacy", LEGACY)
@pytest.mark.parametrize("dtype", DTYPE_NAMES, ids=str)
def test_every_dtype_is_read_and_written(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    tensor = a_tensor_of(dtype)
    read = open_checkpoint(save({"x": tensor}, tmp_path / "weights.pt", legacy))
    assert_same(dict(read), {"x": tensor})
    written = write_checkpoint(tmp_path / "weights.safetensors", read.specs, read.items())
    assert_same(dict(written), {"x": tensor})
    assert_same(safetensors.torch.load_file(tmp_path / "weights.safetensors"), {"x": tensor})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8]), min_size=6, max_size=6),
    legacy=st.booleans(),
)
def test_any_shapes_survive_every_format(
    tmp_path: Path, shapes: list[list[int]], dtypes: list[torch.dtype], legacy: bool
) -> None:
    tensors = {f"t{i}": torch.randn(shape).to(dtypes[i]) for i, shape in enumerate(shapes)}
    assert_same(dict(open_checkpoint(save(tensors, tmp_path / "weights.pt", legacy))), tensors)
    safetensors.torch.save_file(tensors, tmp_path / "weights.safetensors")
    assert dict(open_checkpoint(tmp_path / "weights.safetensors")).keys() == tensors.keys()
    ours = write_checkpoint(
        tmp_path / "ours.safetensors", open_checkpoint(tmp_path / "weights.pt").specs, tensors.items()
    )
    assert ours.digest == open_checkpoint(tmp_path / "weights.safetensors").digest
    for name, tensor in safetensors.torch.load_file(tmp_path / "ours.safetensors").items():
        assert bytes(tensor_bytes(tensor)) == bytes(tensor_bytes(tensors[name]))


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x4B50])
def test_a_header_whose_length_looks_like_another_format(tmp_path: Path, length: int) -> None:
    """A pickle begins with the bytes 80 and 02 to 05, a zip archive with PK; the length of a header may, too."""
    empty = len(safetensors.torch.save({"x": torch.ones(1)}, {"tsv": '{"pad": ""}'})) - 8 - 4
    padded = safetensors.torch.save({"x": torch.ones(1)}, {"tsv": f'{{"pad": "{"p" * (length - empty)}"}}'})
    assert int.from_bytes(padded[:8], "little") == length
    (tmp_path / "w.safetensors").write_bytes(padded)
    assert open_checkpoint(tmp_path / "w.safetensors")["x"].tolist() == [1.0]


def test_metadata_comes_back(tmp_path: Path) -> None:
    write_checkpoint(
        tmp_path / "w.safetensors", {"x": TensorSpec((2,), torch.float32)}, [("x", torch.ones(2))], {"a": [1]}
    )
    assert open_checkpoint(tmp_path / "w.safetensors").metadata == {"a": [1]}


@pytest.mark.parametrize("legacy", LEGACY)
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda weights: weights, id="plain"),
        pytest.param(lambda weights: {f"module.{name}": t for name, t in weights.items()}, id="data-parallel"),
        pytest.param(lambda weights: {f"_orig_mod.module.{n}": t for n, t in weights.items()}, id="compiled"),
        pytest.param(lambda weights: {f"model.{name}": t for name, t in weights.items()}, id="ImageEncoder"),
        pytest.param(
            lambda weights: {
                "epoch": 3,
                "state_dict": OrderedDict((f"model.{n}", t) for n, t in weights.items()),
                "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(9)}}}],
                "hyper_parameters": {"lr": 1e-5},
            },
            id="lightning",
        ),
        pytest.param(lambda weights: {"model": {"state_dict": weights}, "optimizer": {}}, id="nested twice"),
    ],
)
def test_wrappings_come_off(tmp_path: Path, wrap, legacy: bool) -> None:
    weights = {"visual.proj": torch.randn(3, 2), "visual.conv1.weight": torch.randn(2, 3, 4, 4)}
    assert_same(dict(open_checkpoint(save(wrap(weights), tmp_path / "w.pt", legacy))), weights)


def test_a_language_model_keeps_its_own_model_prefix(tmp_path: Path) -> None:
    weights = {"model.layers.0.weight": torch.randn(2, 2), "model.norm.weight": torch.randn(2)}
    assert_same(dict(open_checkpoint(save(weights, tmp_path / "w.bin", False))), weights)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.activation = torch.nn.functional.gelu


@pytest.mark.parametrize("legacy", LEGACY)
def test_a_pickled_module_gives_its_state_dict(tmp_path: Path, legacy: bool) -> None:
    model = nn.Sequential(Block(), nn.Linear(8, 3))
    model[1].weight = nn.Parameter(model[1].weight.detach().T.contiguous().T)
    assert_same(dict(open_checkpoint(save(model, tmp_path / "whole.pt", legacy))), dict(model.state_dict()))


@pytest.mark.parametrize("legacy", LEGACY)
def test_a_pickled_module_of_a_lost_class_still_reads(tmp_path: Path, legacy: bool) -> None:
    """As the ``ImageEncoder`` of task-arithmetic code around open_clip's old ``VisualTransformer``."""
    encoder = type("ImageEncoder", (nn.Module,), {"__module__": "src.modeling"})()
    encoder.model = type("VisualTransformer", (nn.Module,), {"__module__": "open_clip.model"})()
    encoder.model.visual = Block()
    encoder.val_preprocess = ["a list of transforms", Path("data")]
    expected = {name.removeprefix("model."): tensor for name, tensor in encoder.state_dict().items()}
    path = tmp_path / "finetuned.pt"
    with pytest.MonkeyPatch.context() as patch:
        for module, made in (
            ("src", encoder),
            ("src.modeling", encoder),
            ("open_clip", encoder.model),
            ("open_clip.model", encoder.model),
        ):
            stand_in = type(torch)(module)
            stand_in.__dict__[type(made).__name__] = type(made)
            patch.setitem(__import__("sys").modules, module, stand_in)
        save(encoder, path, legacy)
    assert_same(dict(open_checkpoint(path)), expected)


def test_a_torchscript_archive_reads_without_its_code(tmp_path: Path) -> None:
    """OpenAI's own CLIP files are such archives."""
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
    torch.jit.save(model, tmp_path / "jit.pt")
    found = dict(open_checkpoint(tmp_path / "jit.pt"))
    expected = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    assert found.keys() == expected.keys()
    assert_same({name: found[name] for name in expected}, expected)


def shard(folder: Path, tensors: dict[str, Tensor], save_file, suffix: str) -> Path:
    names = sorted(tensors)
    weight_map = {}
    for number, chunk in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002{suffix}"
        save_file({name: tensors[name] for name in chunk}, folder / file)
        weight_map |= dict.fromkeys(chunk, file)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize(
    ("save_file", "suffix"), [(safetensors.torch.save_file, ".safetensors"), (torch.save, ".bin")], ids=["safe", "bin"]
)
def test_a_sharded_checkpoint_reads_as_one(tmp_path: Path, save_file, suffix: str) -> None:
    tensors = {f"layer.{i}.weight": torch.randn(3, 3) for i in range(5)}
    index = shard(tmp_path, tensors, save_file, suffix)
    for uri in (index, tmp_path, f"file://{index}"):
        opened = open_checkpoint(uri)
        assert {name: opened[name].tolist() for name in opened} == {n: t.tolist() for n, t in tensors.items()}
    single = tmp_path / "single.safetensors"
    safetensors.torch.save_file(tensors, single)
    assert open_checkpoint(index).digest == open_checkpoint(single).digest


def test_a_folder_with_usual_names_opens_its_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    torch.save({"x": torch.zeros(1)}, tmp_path / "optimizer.pt")
    assert open_checkpoint(tmp_path)["x"].item() == 1


def test_a_folder_with_several_weights_asks_which(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        torch.save({"x": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value) == f"{tmp_path}: more than one weights file: a.pt, b.pt. Name the one you mean."


def test_only_the_tensor_asked_for_is_read(tmp_path: Path) -> None:
    """A file whose other tensors are cut off later still gives the ones that are there."""
    path = save({"first": torch.ones(4), "second": torch.ones(2**20)}, tmp_path / "w.pt", legacy=False)
    opened = open_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2**21)
    assert opened["first"].tolist() == [1.0] * 4
    with pytest.raises(CheckpointError, match=r"w\.pt: ends inside the values of key 'second'"):
        opened["second"]
