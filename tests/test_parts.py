"""A merge in parts is the same file as a merge in one go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import write

from tsvlib import parts
from tsvlib.checkpoint import Checkpoint
from tsvlib.errors import MismatchError
from tsvlib.merging import merge
from tsvlib.methods import get_method
from tsvlib.parallel import single_threaded_blas

SHAPES = {"a.weight": (24, 16), "a.bias": (24,), "b.in_proj_weight": (48, 16), "c.weight": (16, 40), "scale": ()}


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    random = torch.Generator().manual_seed(0)

    def one(name: str) -> Checkpoint:
        tensors = {key: torch.randn(shape, generator=random) for key, shape in SHAPES.items()}
        return write(tmp_path / f"{name}.safetensors", tensors | {"steps": torch.tensor([3])})

    return one("base"), {name: one(name) for name in ("x", "y", "z")}


@pytest.mark.parametrize("method", ["tsv-m", "ties", "iso-c", "average"])
def test_joined_parts_are_the_same_file(
    method: str, inputs: tuple[Checkpoint, dict[str, Checkpoint]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", 1e5)
    base, tasks = inputs
    chosen = get_method(method)
    divided = parts.divide(base.specs, len(tasks), chosen, chosen.parse({}))
    assert len(divided) > 1
    assert sorted(name for names in divided for name in names) == sorted(base)
    with ThreadPoolExecutor(2) as pool:  # side by side, as on a worker of several threads
        merged = list(
            pool.map(
                lambda one: merge(base, tasks, method, out=tmp_path / f"{one[0]}.safetensors", only=one[1], threads=1),
                enumerate(divided),
            )
        )
    merge(base, tasks, method, out=tmp_path / "whole.safetensors")
    parts.join(merged, tmp_path / "joined.safetensors")
    assert (tmp_path / "joined.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_parts_of_different_merges_are_refused(
    inputs: tuple[Checkpoint, dict[str, Checkpoint]], tmp_path: Path
) -> None:
    base, tasks = inputs
    one = merge(base, tasks, out=tmp_path / "one.safetensors", only=["a.weight"])
    again = merge(base, tasks, out=tmp_path / "again.safetensors", only=["a.weight"])
    other = merge(base, tasks, out=tmp_path / "other.safetensors", only=["a.bias"], alpha=2.0)
    with pytest.raises(MismatchError, match=r"other.safetensors: was made from other inputs, or in another way"):
        parts.join([one, other], tmp_path / "joined.safetensors")
    with pytest.raises(MismatchError, match=r"again.safetensors: key 'a.weight' is in another part too"):
        parts.join([one, again], tmp_path / "joined.safetensors")
    assert not (tmp_path / "joined.safetensors").exists()


def test_parts_do_not_depend_on_the_number_of_workers_and_are_coarse_for_small_models(
    inputs: tuple[Checkpoint, dict[str, Checkpoint]],
) -> None:
    base, tasks = inputs
    chosen = get_method("tsv-m")
    assert parts.divide(base.specs, len(tasks), chosen, chosen.parse({})) == [list(base)]


def test_one_blas_thread_until_the_last_user_is_done() -> None:
    before = torch.get_num_threads()
    first, second = single_threaded_blas(), single_threaded_blas()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_num_threads() == 1
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == before
