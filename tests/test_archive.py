"""TSV-C archives: what comes back, how large they are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import write

from tsvlib.archive import Archive, compress, open_archive
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.errors import ArchiveError, CheckpointError, MethodError, MismatchError
from tsvlib.suite import Suite


@pytest.fixture
def base(suite: Suite) -> Checkpoint:
    return open_checkpoint(suite.path(suite.base))


@pytest.fixture
def tasks(suite: Suite) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(path) for name, path in suite.checkpoints.items()}


def error(one: Checkpoint, other: Checkpoint, name: str) -> float:
    return float((one[name].float() - other[name].float()).norm())


def test_full_rank_gives_the_fine_tune_back(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    archive = compress(base, tasks, out=tmp_path / "a.safetensors", rank_fraction=1.0, dtype="fp32")
    for task, fine_tuned in tasks.items():
        model = archive.extract(task, base)
        assert set(model) == set(fine_tuned)
        for name in model:
            torch.testing.assert_close(model[name], fine_tuned[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "extra"), [("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 8e-3)])
def test_error_is_the_truncation_and_the_rounding(
    base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path, dtype: str, extra: float
) -> None:
    archive = compress(base, tasks, out=tmp_path / "a.safetensors", dtype=dtype)
    model, name = archive.extract("side", base), "visual.transformer.resblocks.0.mlp.c_fc.weight"
    delta = tasks["side"][name] - base[name]
    k = min(delta.shape) // 3
    optimal = float(torch.linalg.svdvals(delta.double())[k:].norm())
    assert optimal * (1 - 1e-6) <= error(model, tasks["side"], name) <= optimal + extra * float(delta.norm())


def test_the_file_is_the_factors_and_a_header(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    archive = compress(base, tasks, out=out)
    header = int.from_bytes(out.read_bytes()[:8], "little")
    assert out.stat().st_size == 8 + header + archive.file.nbytes
    assert archive.file.nbytes < 0.5 * sum(task.nbytes for task in tasks.values())


def test_a_zero_delta_costs_nothing(base: Checkpoint, tmp_path: Path) -> None:
    archive = compress(base, {"same": base}, out=tmp_path / "a.safetensors")
    assert len(archive.file) == 0
    assert archive.extract("same", base).digest == base.digest


def test_order_of_tasks_does_not_matter(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    compress(base, tasks, out=tmp_path / "a.safetensors")
    compress(base, dict(reversed(tasks.items())), out=tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_what_is_refused(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(MethodError, match="rank_fraction = 2: must be above 0 and at most 1"):
        compress(base, tasks, out=out, rank_fraction=2)
    with pytest.raises(MethodError, match="dtype = 'fp8': choose one of fp16, bf16, fp32"):
        compress(base, tasks, out=out, dtype="fp8")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="nothing to compress"):
        compress(base, {}, out=out)
    short = Checkpoint.from_tensors({name: base[name] for name in list(base)[1:]})
    with pytest.raises(MismatchError, match=r"task 'short'.*lacks the key"):
        compress(base, {"short": short}, out=out)
    assert not list(tmp_path.iterdir())


def test_another_base_is_refused(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    archive = compress(base, tasks, out=tmp_path / "a.safetensors")
    with pytest.raises(ArchiveError, match="was made from the base"):
        archive.extract("side", tasks["side"])


def test_unknown_task_is_refused(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    archive = compress(base, tasks, out=tmp_path / "a.safetensors")
    with pytest.raises(ArchiveError, match=r"no task 'sied'\. Did you mean 'side'\?"):
        archive.extract("sied", base)


def test_other_files_are_refused(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is no TSV-C archive"):
        open_archive(suite.path(suite.base))
    newer = write(tmp_path / "new.safetensors", {"x": torch.zeros(1)}, {"kind": "archive", "layout": 99})
    with pytest.raises(ArchiveError, match="has layout 99; this version reads 1"):
        Archive(newer)


def test_a_truncated_archive_is_refused(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    compress(base, tasks, out=out)
    out.write_bytes(out.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        open_archive(out)
