"""The command line over every kind of file: merge, plan, convert, inspect and verify."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from tsvlib.checkpoint import open_checkpoint
from tsvlib.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tsv(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; gives exit status, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tsv", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def encoder(seed: int) -> dict[str, Tensor]:
    base = {
        "visual.proj": torch.randn(16, 8, generator=torch.Generator().manual_seed(9)),
        "visual.scale": torch.ones(8),
    }
    random = torch.Generator().manual_seed(seed)
    return {n: t + (0.05 * torch.randn(t.shape, generator=random) if seed else 0) for n, t in base.items()}


def as_module(tensors: dict[str, Tensor]) -> nn.Module:
    root = nn.Module()
    root.visual = nn.Module()
    for name, tensor in tensors.items():
        root.visual.register_parameter(name.removeprefix("visual."), nn.Parameter(tensor))
    return root


def save_shards(tensors: dict[str, Tensor], path: Path) -> None:
    weight_map = {name: f"{path.name}-{number}.safetensors" for number, name in enumerate(tensors)}
    for name, file in weight_map.items():
        safetensors.torch.save_file({name: tensors[name]}, path.parent / file)
    path.write_text(json.dumps({"weight_map": weight_map}))


def save_jit(tensors: dict[str, Tensor], path: Path) -> None:
    class Visual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Parameter(tensors["visual.proj"])
            self.scale = nn.Parameter(tensors["visual.scale"])

        def forward(self, x: Tensor) -> Tensor:
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = Visual()

        def forward(self, x: Tensor) -> Tensor:
            return self.visual(x)

    torch.jit.trace(Model(), torch.ones(1), check_trace=False).save(str(path))


KINDS: dict[str, tuple[str, Callable[[dict[str, Tensor], Path], Any]]] = {
    "safetensors": (".safetensors", safetensors.torch.save_file),
    "sharded safetensors": (".safetensors.index.json", save_shards),
    "torch zip": (".pt", torch.save),
    "torch legacy": (".pt", lambda t, p: torch.save(t, p, _use_new_zipfile_serialization=False)),
    "lightning": (".ckpt", lambda t, p: torch.save({"state_dict": {f"model.{n}": x for n, x in t.items()}}, p)),
    "data-parallel": (".bin", lambda t, p: torch.save({f"module.{n}": x for n, x in t.items()}, p)),
    "whole module": (".pt", lambda t, p: torch.save(as_module(t), p)),
    "whole module, legacy": (
        ".pt",
        lambda t, p: torch.save(as_module(t), p, _use_new_zipfile_serialization=False),
    ),
    "TorchScript": (".pt", save_jit),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_two_of_each_kind_of_file_merge(tmp_path: Path, tsv: Run, kind: str) -> None:
    suffix, save = KINDS[kind]
    for seed, name in enumerate(("base", "a", "b")):
        save(encoder(seed), tmp_path / f"{name}{suffix}")
        safetensors.torch.save_file(encoder(seed), tmp_path / f"{name}-reference.safetensors")

    def merged(ending: str, out: str) -> str:
        words = ["--base", tmp_path / f"base{ending}"]
        for task in "ab":
            words += ["--task", f"{task}={tmp_path / task}{ending}"]
        status, printed, error = tsv("merge", *words, "--out", tmp_path / out, "--json")
        assert status == 0, error
        return json.loads(printed)["digest"]

    assert merged(suffix, "out.safetensors") == merged("-reference.safetensors", "expected.safetensors")


@pytest.fixture
def files(tmp_path: Path) -> list[object]:
    """The words that name a base and two tasks."""
    for seed, name in enumerate(("base", "a", "b")):
        safetensors.torch.save_file(encoder(seed), tmp_path / f"{name}.safetensors")
    words: list[object] = ["--base", tmp_path / "base.safetensors"]
    for task in "ab":
        words += ["--task", f"{task}={tmp_path / task}.safetensors"]
    return words


def test_plan(tmp_path: Path, tsv: Run, files: list[object]) -> None:
    status, printed, _ = tsv("plan", *files, "--tensors")
    assert status == 0
    for part in ("visual.proj", "16 × 8", "svd", "tensors:     1 svd, 1 mean", "to fetch:    0 bytes in 0 files"):
        assert part in printed
    status, printed, _ = tsv("plan", *files, "--json")
    assert json.loads(printed)["counts"] == {"svd": 1, "mean": 1}


def test_plan_with_problems(tmp_path: Path, tsv: Run, files: list[object]) -> None:
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "base.safetensors").read_bytes())
    (tmp_path / "b.safetensors").write_text("<html>")
    status, _, error = tsv("plan", *files)
    assert status == 2
    assert error.splitlines() == [
        f"error: {tmp_path}/b.safetensors: a web page, not weights; perhaps a login or an error page. Check the "
        "address and your access to it. (task 'b')",
        f"{tmp_path}/a.safetensors (task 'a'): has the base's values throughout, so it adds nothing. Check that it "
        "is the fine-tuned file.",
    ]


def test_fetch(tmp_path: Path, tsv: Run, files: list[object]) -> None:
    status, printed, _ = tsv("fetch", tmp_path / "a.safetensors", "--json")
    assert status == 0
    assert [one["tensors"] for one in json.loads(printed)["fetched"]] == [2]
    assert "2 tensors" in tsv("fetch", *files)[1]


def test_inspect_and_verify(tmp_path: Path, tsv: Run, files: list[object]) -> None:
    tsv("merge", *files, "--out", tmp_path / "m.safetensors", "--quiet")
    status, printed, _ = tsv("inspect", tmp_path / "m.safetensors")
    assert status == 0
    assert "provenance.sources.base" in printed
    assert json.loads(tsv("inspect", tmp_path / "m.safetensors", "--json")[1])["provenance"]["method"] == "tsv-m"
    status, printed, _ = tsv("verify", tmp_path / "m.safetensors")
    assert (status, printed) == (0, f"{tmp_path}/m.safetensors: what its header says, to the last bit.\n")


def test_a_dtype_is_chosen_recorded_and_verified(tmp_path: Path, tsv: Run, files: list[object]) -> None:
    out = tmp_path / "m.safetensors"
    assert json.loads(tsv("plan", *files, "--dtype", "bf16", "--json")[1])["out_bytes"] == 2 * (16 * 8 + 8)
    status, printed, _ = tsv("merge", *files, "--out", out, "--dtype", "bf16", "--json")
    assert (status, json.loads(printed)["dtype"]) == (0, "bf16")
    assert {spec.dtype for spec in open_checkpoint(out).specs.values()} == {torch.bfloat16}
    assert json.loads(tsv("verify", out, "--json")[1])["verdict"] == "identical"


def test_verify_tells_a_changed_file(tmp_path: Path, tsv: Run, files: list[object]) -> None:
    tsv("merge", *files, "--out", tmp_path / "m.safetensors", "--quiet")
    whole = bytearray((tmp_path / "m.safetensors").read_bytes())
    whole[-1] ^= 0x10
    (tmp_path / "m.safetensors").write_bytes(whole)
    status, _, error = tsv("verify", tmp_path / "m.safetensors")
    assert status == 2
    assert "is not what its header says: 'visual." in error


def test_convert(tmp_path: Path, tsv: Run) -> None:
    torch.save(as_module(encoder(1)), tmp_path / "old.pt")
    status, printed, _ = tsv("convert", tmp_path / "old.pt", "--out", tmp_path / "new.safetensors", "--json")
    assert status == 0
    assert json.loads(printed)["digest"] == open_checkpoint(tmp_path / "old.pt").digest
    status, _, error = tsv("convert", tmp_path / "old.pt", "--out", tmp_path / "new.safetensors")
    assert status == 2
    assert "exists already" in error


def test_convert_narrows_floating_point(tmp_path: Path, tsv: Run) -> None:
    tensors = encoder(1) | {"steps": torch.tensor(3)}
    torch.save(tensors, tmp_path / "w.pt")
    assert tsv("convert", tmp_path / "w.pt", "--out", tmp_path / "half.safetensors", "--dtype", "bf16")[0] == 0
    half = open_checkpoint(tmp_path / "half.safetensors")
    assert torch.equal(half["visual.proj"], tensors["visual.proj"].bfloat16())
    assert half["steps"].dtype == torch.int64


def test_no_traceback_for_an_attack(tmp_path: Path, tsv: Run) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return print, ("owned",)

    file = io.BytesIO()
    torch.save(Attack(), file)
    (tmp_path / "w.pt").write_bytes(file.getvalue())
    status, printed, error = tsv("inspect", tmp_path / "w.pt")
    assert (status, printed) == (2, "")
    assert error.startswith(f"error: {tmp_path}/w.pt: refused: the pickle asks for '__builtin__.print'")
    assert len(error.splitlines()) == 1
