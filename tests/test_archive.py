"""TSV-C archives: what comes back, how large they are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from conftest import write
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tsvlib.archive import Archive, add, compress, open_archive, remove_task
from tsvlib.archive.coding import CODINGS, code_dense, code_factors, decode_dense, decode_factors
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.errors import ArchiveError, MethodError, MismatchError
from tsvlib.factors import factorise
from tsvlib.key_policy import KeyPolicy
from tsvlib.suite import Suite
from tsvlib.task_vector import TaskMatrix


@pytest.fixture
def base(suite: Suite) -> Checkpoint:
    return open_checkpoint(suite.path(suite.base))


@pytest.fixture
def tasks(suite: Suite) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(path) for name, path in suite.checkpoints.items()}


@pytest.fixture
def archive(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> Archive:
    return compress(base, tasks, out=tmp_path / "a.safetensors")


def error(one: Checkpoint, other: Checkpoint, name: str) -> float:
    return float((one[name].float() - other[name].float()).norm())


def test_full_rank_gives_the_fine_tune_back(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    archive = compress(base, tasks, out=tmp_path / "a.safetensors", rank_fraction=1.0, dtype="fp32")
    for task, fine_tuned in tasks.items():
        model = archive.extract(task, base)
        assert set(model) == set(fine_tuned)
        for name in model:
            torch.testing.assert_close(model[name], fine_tuned[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "extra"), [("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 8e-3), ("int8", 2e-2)])
def test_error_is_the_truncation_and_the_rounding(
    base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path, dtype: str, extra: float
) -> None:
    archive = compress(base, tasks, out=tmp_path / "a.safetensors", dtype=dtype)  # type: ignore[arg-type]
    model, name = archive.extract("side", base), "visual.transformer.resblocks.0.mlp.c_fc.weight"
    delta = tasks["side"][name] - base[name]
    k = min(delta.shape) // 3
    optimal = float(torch.linalg.svdvals(delta.double())[k:].norm())
    assert optimal * (1 - 1e-6) <= error(model, tasks["side"], name) <= optimal + extra * float(delta.norm())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.sampled_from(sorted(CODINGS)),
    st.integers(-25, 25), st.integers(0, 2**16),
)  # fmt: skip
def test_the_error_never_exceeds_the_bound(m: int, n: int, k: int, dtype: str, exponent: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -seed % 5, n)  # columns of very different size
    delta = torch.randn(m, n, generator=random) * spread * 2.0**exponent
    factors = factorise(TaskMatrix.of(delta, "t"), min(k, m, n))
    coded = code_factors(factors, delta, CODINGS[dtype])
    lost = (decode_factors(coded.rank, coded.codes, coded.scales).matrix() - delta).double().norm()
    assert lost <= coded.truncation + coded.quantisation
    whole = code_dense(delta, CODINGS[dtype])
    assert (decode_dense(*whole.codes, whole.scales) - delta).double().norm() <= whole.quantisation


@pytest.mark.parametrize("dtype", sorted(CODINGS))
@pytest.mark.parametrize("settings", [{}, {"rank_fraction": 0.9}, {"budget": "30%"}])
def test_an_extracted_model_is_within_the_bounds_that_the_archive_states(
    base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path, dtype: str, settings: dict[str, object]
) -> None:
    if dtype == "fp32" and "budget" in settings:
        settings = {"budget": "60%"}
    archive = compress(base, tasks, out=tmp_path / "a.safetensors", dtype=dtype, **settings)  # type: ignore[arg-type]
    for task, fine_tuned in tasks.items():
        model = archive.extract(task, base)
        for name in model:
            rounding = 2**-23 * float(fine_tuned[name].norm())
            assert error(model, fine_tuned, name) <= archive.error_bound(task, name) + rounding


def test_the_smallest_form_of_each_parameter_is_chosen(archive: Archive) -> None:
    entries = archive.task("side").entries
    assert entries["visual.transformer.resblocks.0.mlp.c_fc.weight"].rank == 10
    assert entries["visual.conv1.weight"].rank == 10  # 32 x 192 as a matrix
    assert entries["visual.positional_embedding"].rank == 1
    assert entries["visual.ln_pre.bias"].rank == 0
    assert entries["visual.ln_pre.bias"].packed


def test_a_matrix_is_stored_whole_where_that_takes_no_more(
    base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path
) -> None:
    archive = compress(base, tasks, out=tmp_path / "a.safetensors", rank_fraction=0.9)
    assert archive.task("side").entries["visual.transformer.resblocks.0.attn.out_proj.weight"].rank == 0
    assert archive.task("side").entries["visual.positional_embedding"].rank == 4  # 5 x 32


def test_all_bytes_are_accounted_for(archive: Archive) -> None:
    assert archive.path.stat().st_size == archive.nbytes
    for task in archive.tasks:
        header = archive.task_nbytes(task) - archive.task(task).nbytes
        values = sum(archive.task(task).entry_nbytes(key) for key in archive.task(task).entries)
        assert values == archive.task(task).nbytes
        assert 0 < header < 7000


def test_any_safetensors_library_reads_it(archive: Archive) -> None:
    with safetensors.safe_open(archive.path, "pt") as file:
        assert list(file.keys()) == ["base", "task/bright", "task/side", "task/stripe"]
        inner = safetensors.torch.load(file.get_tensor("task/side").numpy().tobytes())
    assert torch.equal(inner["visual.proj/U"], archive.file["side/visual.proj/U"])


def test_a_zero_delta_costs_nothing(base: Checkpoint, tmp_path: Path) -> None:
    archive = compress(base, {"same": base}, out=tmp_path / "a.safetensors")
    assert archive.task("same").nbytes == 0
    assert archive.extract("same", base).digest == base.digest


def test_what_is_no_float_is_the_base(tmp_path: Path) -> None:
    start = {"w": torch.randn(8, 8), "steps": torch.tensor([3]), "none": torch.empty(0, 4), "scalar": torch.tensor(2.0)}
    tuned = {"w": start["w"] + 1, "steps": torch.tensor([4]), "none": torch.empty(0, 4), "scalar": torch.tensor(2.5)}
    base = write(tmp_path / "base.safetensors", start)
    task = write(tmp_path / "task.safetensors", tuned)
    model = compress(base, {"t": task}, out=tmp_path / "a.safetensors").extract("t", base)
    assert model["steps"].item() == 3
    assert model["scalar"].item() == 2.5
    torch.testing.assert_close(model["w"], tuned["w"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("policy", [KeyPolicy(), KeyPolicy(qkv="split", conv="matrix"), KeyPolicy(embeddings="mean")])
def test_key_policies(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path, policy: KeyPolicy) -> None:
    archive = compress(
        base, tasks, out=tmp_path / "a.safetensors", rank_fraction=1.0, dtype="fp32", key_policy=policy
    )  # fmt: skip
    model = archive.extract("side", base)
    for name in base:
        torch.testing.assert_close(model[name], tasks["side"][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bases_of_other_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(24, 16, generator=random).to(dtype)}
    tuned = {"w": (start["w"].float() + 0.1 * torch.randn(24, 16, generator=random)).to(dtype)}
    base, task = write(tmp_path / "b.safetensors", start), write(tmp_path / "t.safetensors", tuned)
    archive = compress(base, {"t": task}, out=tmp_path / "a.safetensors", rank_fraction=1.0, dtype="fp32")
    model = archive.extract("t", base)
    assert model["w"].dtype == dtype
    torch.testing.assert_close(model["w"], tuned["w"], atol=torch.finfo(dtype).eps * 4 + 1e-6, rtol=0)


def test_a_live_model_becomes_that_of_a_task_in_place(archive: Archive, base: Checkpoint) -> None:
    live = {name: tensor.clone() for name, tensor in base.items()}
    places = {name: tensor.data_ptr() for name, tensor in live.items()}
    for task in ("side", "bright", "side"):
        archive.load_into(live, task, base)
        model = archive.extract(task, base)
        assert all(torch.equal(live[name], model[name]) for name in live)
    assert {name: tensor.data_ptr() for name, tensor in live.items()} == places


def test_a_live_model_that_does_not_fit(archive: Archive, base: Checkpoint) -> None:
    live: dict[str, Tensor] = {name: tensor.clone() for name, tensor in base.items()}
    live["visual.proj"], live["extra"] = torch.zeros(3), torch.zeros(1)
    del live["visual.ln_pre.bias"]
    before = live["visual.conv1.weight"].clone()
    with pytest.raises(MismatchError) as caught:
        archive.load_into(live, "side", base)
    assert str(caught.value) == (
        f"the model: key 'visual.ln_pre.bias' is missing.\n"
        f"the model: key 'extra' is not in the base {base.source}.\n"
        f"the model: key 'visual.proj' has shape (3,), the base {base.source} has (32, 16)."
    )
    assert torch.equal(live["visual.conv1.weight"], before)


def test_order_of_tasks_does_not_matter(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    compress(base, tasks, out=tmp_path / "a.safetensors")
    compress(base, dict(reversed(tasks.items())), out=tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_task_added_later_is_stored_as_one_from_the_start(
    base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path
) -> None:
    whole = compress(base, tasks, out=tmp_path / "whole.safetensors", rank_fraction=0.4, dtype="int8")
    first = {name: tasks[name] for name in ("bright", "side")}
    path = tmp_path / "a.safetensors"
    compress(base, first, out=path, rank_fraction=0.4, dtype="int8")
    before = path.read_bytes()
    grown = add(path, base, {"stripe": tasks["stripe"]})
    assert grown.extract("stripe", base).digest == whole.extract("stripe", base).digest
    end_of_index = grown._index.room
    assert path.read_bytes()[end_of_index : len(before)] == before[end_of_index:]
    shrunk = remove_task(path, "stripe")
    assert shrunk.tasks == ["bright", "side"]
    assert shrunk.extract("side", base).digest == whole.extract("side", base).digest
    assert path.stat().st_size <= len(before)


def test_what_adding_and_removing_refuse(archive: Archive, base: Checkpoint, tasks: dict[str, Checkpoint]) -> None:
    path, before = archive.path, archive.path.read_bytes()
    with pytest.raises(ArchiveError) as caught:
        add(path, base, {"side": tasks["side"]})
    assert str(caught.value) == f"{path}: has a task 'side' already. Remove it first, or choose another name."
    with pytest.raises(ArchiveError, match="was made from another base"):
        add(path, tasks["side"], {"new": tasks["side"]})
    with pytest.raises(ArchiveError) as caught:
        remove_task(path, "sied")
    assert str(caught.value) == f"{path}: no task 'sied'. Did you mean 'side'? There are: bright, side, stripe."
    with pytest.raises(MethodError, match="a name in an archive cannot be empty or hold '/'"):
        add(path, base, {"a/b": tasks["side"]})
    assert path.read_bytes() == before


def test_what_is_refused(base: Checkpoint, tasks: dict[str, Checkpoint], tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(MethodError, match="rank_fraction = 2: must be above 0 and at most 1"):
        compress(base, tasks, out=out, rank_fraction=2)
    with pytest.raises(MethodError, match="dtype = 'fp8': choose one of fp16, bf16, fp32, int8"):
        compress(base, tasks, out=out, dtype="fp8")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="nothing to compress"):
        compress(base, {}, out=out)
    with pytest.raises(MethodError, match="rank_fraction and budget: give one or the other"):
        compress(base, tasks, out=out, rank_fraction=0.5, budget="10%")
    short = Checkpoint.from_tensors({name: base[name] for name in list(base)[1:]})
    with pytest.raises(MismatchError, match=r"task 'short'.*lacks the key"):
        compress(base, {"short": short}, out=out)
    assert not list(tmp_path.iterdir())


def test_another_base_is_refused(archive: Archive, base: Checkpoint, tasks: dict[str, Checkpoint]) -> None:
    with pytest.raises(ArchiveError) as caught:
        archive.extract("side", tasks["side"])
    assert str(caught.value) == (
        f"{archive.path}: was made from another base than {tasks['side'].source}, which differs in the values of key "
        "'visual.class_embedding'. Give the base that it was made from, unaltered."
    )
    other = Checkpoint.from_tensors({name: base[name] for name in list(base)[1:]})
    with pytest.raises(ArchiveError, match=r"differs in key 'visual.class_embedding' \(shape, dtype or presence\)"):
        archive.extract("side", other)


def test_a_base_altered_in_one_large_tensor_is_refused(tmp_path: Path) -> None:
    start = {"large": torch.randn(256, 256), "small": torch.randn(8)}
    base = write(tmp_path / "base.safetensors", start)
    task = write(tmp_path / "task.safetensors", {name: tensor + 0.1 for name, tensor in start.items()})
    archive = compress(base, {"t": task}, out=tmp_path / "a.safetensors")
    start["large"][100, 100] += 1e-6
    model = archive.extract("t", write(tmp_path / "altered.safetensors", start))
    assert model["small"].shape == (8,)
    with pytest.raises(ArchiveError, match="differs in the values of key 'large'"):
        model["large"]


def test_unknown_task_is_refused(archive: Archive, base: Checkpoint) -> None:
    with pytest.raises(ArchiveError, match=r"no task 'sied'\. Did you mean 'side'\?"):
        archive.extract("sied", base)


def test_other_files_are_refused(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError) as caught:
        open_archive(suite.path(suite.base))
    assert str(caught.value) == (f"{suite.path(suite.base)}: is no TSV-C archive. Make one with 'tsv compress'.")
    newer = write(tmp_path / "new.safetensors", {"x": torch.zeros(1)}, {"kind": "archive", "layout": 99})
    with pytest.raises(ArchiveError, match=r"has layout 99; this version reads 2\. Upgrade tsvlib\."):
        Archive(newer)
    older = write(tmp_path / "old.safetensors", {"x": torch.zeros(1)}, {"kind": "archive", "layout": 1})
    with pytest.raises(ArchiveError, match=r"has layout 1; this version reads 2\. Make it again with 'tsv compress'\."):
        Archive(older)
    with pytest.raises(ArchiveError, match="no such file"):
        open_archive(tmp_path / "missing.safetensors")
