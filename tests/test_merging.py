"""TSV-Merge against float64, its invariances and identities, what it does where the formula is undefined, and whole
models."""

import math
import os
import subprocess
import sys
import time
import warnings

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from spectra import (
    orthonormal,
    plain_polar,
    plain_tsv_merge,
    power_law,
    relative_error,
    task_matrices,
    with_spectrum,
)

from tsvlib import Checkpoint, KeyPolicy, batched, lapack, merge, merge_matrix, open_checkpoint
from tsvlib.checkpoint import write_checkpoint
from tsvlib.errors import MethodError, MismatchError, NumericalError, TSVWarning
from tsvlib.factors import Factors, factorise
from tsvlib.methods import get_method, method_names
from tsvlib.parallel import single_threaded_blas
from tsvlib.task_vector import TaskMatrix
from tsvlib.tensors import FLOAT_DTYPES

SHAPES = [(96, 32, 4), (32, 96, 4), (48, 48, 8), (48, 48, 5), (50, 96, 8), (5, 7, 2), (40, 20, 3)]


def smallest_of_concatenation(deltas, k):
    """Of the shorter side's singular vectors, put side by side: what the polar factor divides by."""
    triplets = [torch.linalg.svd(delta.double(), full_matrices=False) for delta in deltas]
    U = torch.cat([U[:, :k] for U, _, _ in triplets], dim=1)
    V = torch.cat([Vh[:k].T for _, _, Vh in triplets], dim=1)
    return min(float(torch.linalg.svdvals(side)[-1]) for side in (U, V))


@pytest.fixture(params=["cpu", "accelerator"])
def path(request, monkeypatch):
    """Both ways through the numerics; what an accelerator does is plain torch, and runs on the CPU as well."""
    if request.param == "accelerator":
        monkeypatch.setattr(batched, "on_accelerator", lambda device: True)


# --- accuracy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "tasks"), SHAPES)
@given(seed=st.integers(0, 10**5), decay=st.sampled_from([0.5, 1.0]), floor=st.sampled_from([0.0, 0.02]))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nearer_to_float64_than_the_authors_are(path, m, n, tasks, seed, decay, floor):
    deltas = task_matrices(m, n, tasks, decay, floor, seed)
    k = min(m, n) // tasks
    assume(smallest_of_concatenation(deltas, k) > 1e-3)
    expected = plain_tsv_merge(deltas, k)
    error = relative_error(merge_matrix(deltas), expected)
    theirs = relative_error(plain_tsv_merge(deltas, k, torch.float32), expected)
    assert error <= 1e-5
    assert error <= max(theirs, 1e-6)


@pytest.mark.parametrize("decay", [0.5, 1.0, 1.5])
def test_fast_mode(decay):
    deltas = task_matrices(96, 64, 4, decay)
    assert relative_error(merge_matrix(deltas, mode="fast"), plain_tsv_merge(deltas, 16)) <= 2e-3


def test_reference_mode_is_the_authors_algorithm():
    deltas = task_matrices(96, 64, 4)
    expected = plain_tsv_merge(deltas, 16, torch.float32)
    assert relative_error(merge_matrix(deltas, mode="reference"), expected) <= 1e-6


def test_steep_spectra(path):
    """s_k / s_1 = 1e-4, where a float32 Gram matrix would be off by 0.5."""
    deltas = task_matrices(256, 200, 2, decay=2.0, floor=0)
    assert relative_error(merge_matrix(deltas), plain_tsv_merge(deltas, 100)) <= 1e-4


def test_float64(path):
    deltas = [delta.double() for delta in task_matrices(40, 30, 3)]
    merged = merge_matrix(deltas)
    assert merged.dtype == torch.float64
    assert relative_error(merged, plain_tsv_merge(deltas, 10)) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(path, dtype):
    deltas = [delta.to(dtype) for delta in task_matrices(40, 30, 3)]
    merged = merge_matrix(deltas)
    assert merged.dtype == torch.float32
    assert relative_error(merged, plain_tsv_merge(deltas, 10)) <= 1e-5


def test_without_scipys_routines(monkeypatch):
    deltas = task_matrices(60, 40, 4)

    def missing(module, name):
        raise lapack.LapackError(name)

    monkeypatch.setattr(lapack, "_routine", missing)
    assert relative_error(merge_matrix(deltas), plain_tsv_merge(deltas, 10)) <= 1e-5


# --- invariances --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "tasks"), SHAPES[:5])
def test_invariances(path, m, n, tasks):
    deltas = next(
        deltas
        for deltas in (task_matrices(m, n, tasks, decay=0.7, seed=seed) for seed in range(10))
        if smallest_of_concatenation(deltas, min(m, n) // tasks) > 1e-3
    )
    merged = merge_matrix(deltas)
    permutation = torch.randperm(tasks, generator=torch.Generator().manual_seed(0)).tolist()
    assert relative_error(merge_matrix([deltas[t] for t in permutation]), merged) <= 1e-5
    assert relative_error(merge_matrix([delta * 3.7 for delta in deltas]), merged * 3.7) <= 1e-5
    assert relative_error(merge_matrix([delta.T for delta in deltas]), merged.T) <= 1e-5
    Q = orthonormal(m, m, 99)
    rotated = [(Q @ delta.double()).float() for delta in deltas]
    assert relative_error(merge_matrix(rotated), Q @ merged.double()) <= 1e-5
    column_major = [delta.T.contiguous().T for delta in deltas]
    assert torch.equal(merge_matrix(column_major), merged)


@pytest.mark.parametrize("exponent", [-60, 60])
def test_scaling_by_a_power_of_two_changes_no_bit(exponent):
    deltas = task_matrices(40, 30, 3)
    scale = torch.tensor(exponent)
    merged = merge_matrix([torch.ldexp(delta, scale) for delta in deltas])
    assert torch.equal(merged, torch.ldexp(merge_matrix(deltas), scale))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18])
def test_extreme_scales(path, scale):
    deltas = task_matrices(40, 30, 3, scale=1.0)
    merged = merge_matrix([delta * scale for delta in deltas])
    assert relative_error(merged.double() / scale, merge_matrix(deltas)) <= 1e-5


def test_rotated_bases_give_the_same_merge():
    """The merge depends on the dominant subspaces alone, not on the vectors that span them."""
    deltas = [with_spectrum(40, 30, torch.ones(10).double(), seed) for seed in range(3)]
    method = get_method("tsv-m")
    factors = [factorise(TaskMatrix.of(delta, str(t)), 10) for t, delta in enumerate(deltas)]
    R = orthonormal(10, 10, 5).float()
    rotated = [Factors(one.U @ R, one.S, R.T @ one.Vh, 1.0) for one in factors]
    merged = method.function(factors, method.parse({}))
    assert relative_error(method.function(rotated, method.parse({})), merged) <= 1e-5


# --- identities ---------------------------------------------------------------------------------------------------


def test_one_task_is_itself(path):
    (delta,) = task_matrices(40, 30, 1)
    assert relative_error(merge_matrix([delta]), delta) <= 1e-5


@pytest.mark.filterwarnings("ignore::tsvlib.errors.TSVWarning")
@pytest.mark.parametrize("tasks", [2, 4])
def test_identical_tasks_give_their_rank_k_part(path, tasks):
    (delta,) = task_matrices(40, 30, 1)
    U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
    k = 30 // tasks
    assert relative_error(merge_matrix([delta] * tasks), (U[:, :k] * S[:k]) @ Vh[:k]) <= 1e-5


def test_alpha_scales():
    deltas = task_matrices(20, 10, 2)
    assert torch.equal(merge_matrix(deltas, alpha=0.5), 0.5 * merge_matrix(deltas))


def test_smaller_rank_is_a_slice_of_the_factors():
    deltas = task_matrices(40, 30, 3)
    method = get_method("tsv-m")
    factors = [factorise(TaskMatrix.of(delta, str(t)), 15).truncated(10) for t, delta in enumerate(deltas)]
    assert relative_error(method.function(factors, method.parse({})), merge_matrix(deltas)) <= 1e-5
    assert factors[0].gap == pytest.approx(factorise(TaskMatrix.of(deltas[0], "0"), 10).gap, rel=1e-4)
    assert factors[0].truncated(99) is factors[0]
    assert relative_error(factors[0].matrix(), (factors[0].U * factors[0].S) @ factors[0].Vh) == 0


# --- where the formula is undefined --------------------------------------------------------------------------------


def test_one_zero_task_takes_no_part(path):
    first, second = task_matrices(40, 30, 2)
    with pytest.warns(TSVWarning, match=r"^matrix: the delta of task '1' is zero; it takes no part"):
        merged = merge_matrix([first, torch.zeros(40, 30), second], rank_fraction=1 / 3)
    assert relative_error(merged, plain_tsv_merge([first, second], 10)) <= 1e-5


def test_all_tasks_zero(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not merge_matrix([torch.zeros(6, 4)] * 3).any()


def test_rank_below_k(path):
    deltas = [with_spectrum(40, 30, power_law(rank, 0.5), seed) for seed, rank in enumerate((4, 20))]
    with pytest.warns(TSVWarning, match=r"^matrix: task '0' has rank 4, below the 15 asked for; the rest is left out"):
        merged = merge_matrix(deltas)
    triplets = [torch.linalg.svd(delta.double(), full_matrices=False) for delta in deltas]
    U = torch.cat([triplets[0].U[:, :4], triplets[1].U[:, :15]], dim=1)
    S = torch.cat([triplets[0].S[:4], triplets[1].S[:15]])
    Vh = torch.cat([triplets[0].Vh[:4], triplets[1].Vh[:15]])
    assert relative_error(merged, (plain_polar(U) * S) @ plain_polar(Vh)) <= 1e-5


@pytest.mark.filterwarnings("ignore::tsvlib.errors.TSVWarning")
@pytest.mark.parametrize("factor", [1.0, -1.0, 1 + 2**-20])
def test_identical_and_opposite_tasks(path, factor):
    first, other = task_matrices(40, 30, 2)
    deltas = [first, other, factor * first]
    with pytest.warns(TSVWarning, match=r"^matrix: tasks '0', '2' share directions \(smallest singular"):
        merged = merge_matrix(deltas)
    assert torch.isfinite(merged).all()
    for order in ([2, 1, 0], [1, 0, 2]):
        with pytest.warns(TSVWarning, match="share directions"):
            again = merge_matrix([deltas[t] for t in order])
        assert relative_error(again, merged) <= 1e-4


@pytest.mark.filterwarnings("ignore::tsvlib.errors.TSVWarning")
def test_tie_at_the_cut():
    spectrum = torch.cat([torch.full((20,), 1.0), torch.full((10,), 0.1)]).double()
    deltas = [with_spectrum(40, 30, spectrum, seed) for seed in range(2)]
    with pytest.warns(TSVWarning, match=r"task '0' tie at the cut \(rank 15, relative gap \d\.\de[-+]\d\d\)"):
        merged = merge_matrix(deltas)
    assert torch.isfinite(merged).all()
    with pytest.warns(TSVWarning, match="tie at the cut"):
        again = merge_matrix(deltas)
    assert torch.equal(merged, again)


def test_near_tie_is_still_exact(path):
    """A gap of 2e-6 at the cut: well defined in float64, and lost by a float32 SVD."""
    spectrum = torch.linspace(1, 0.5, 30, dtype=torch.float64)
    spectrum[15:] -= spectrum[15] - spectrum[14] + 2e-6
    deltas = [with_spectrum(40, 30, spectrum, seed) for seed in range(2)]
    assert relative_error(merge_matrix(deltas), plain_tsv_merge(deltas, 15)) <= 1e-5


def test_more_tasks_than_dimensions(path):
    deltas = task_matrices(8, 5, 7)
    with pytest.warns(TSVWarning, match=r"^matrix: 7 tasks share a matrix of rank 5; each keeps its first"):
        merged = merge_matrix(deltas)
    expected = plain_tsv_merge(deltas, 1)
    assert relative_error(merged, expected) <= 1e-5


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_vectors(path, shape):
    (delta,) = task_matrices(*shape, 1)
    assert relative_error(merge_matrix([delta]), delta) <= 1e-6


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_name_the_task(method, value, capfd):
    deltas = task_matrices(6, 4, 2)
    deltas[1][0, 0] = value
    with pytest.raises(NumericalError, match=r"^matrix: task '1': 1 of 24 values of the delta are NaN or Inf\."):
        merge_matrix(deltas, method)
    assert capfd.readouterr() == ("", "")


def test_no_deltas():
    with pytest.raises(MethodError, match=r"^nothing to merge: give at least one delta\.$"):
        merge_matrix([])


@pytest.mark.parametrize("deltas", [[torch.ones(2, 3), torch.ones(3, 2)], [torch.ones(4), torch.ones(4)]])
def test_deltas_of_other_shapes(deltas):
    with pytest.raises(MismatchError, match="the deltas must be matrices of one shape, not"):
        merge_matrix(deltas)


def test_integer_deltas():
    with pytest.raises(NumericalError, match=r"^the deltas must be floating-point, not torch\.int64\.$"):
        merge_matrix([torch.ones(2, 3, dtype=torch.int64)])


# --- whole models -------------------------------------------------------------------------------------------------

D = 16


def model(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "visual.conv1.weight": (D, 3, 2, 2), "visual.class_embedding": (D,), "visual.positional_embedding": (5, D),
        "visual.block.attn.in_proj_weight": (3 * D, D), "visual.block.attn.in_proj_bias": (3 * D,),
        "visual.block.mlp.c_fc.weight": (4 * D, D), "visual.block.mlp.c_proj.weight": (D, 4 * D),
        "visual.proj": (D, 8), "text_projection": (8, 8), "logit_scale": (), "empty": (0, 4),
    }  # fmt: skip
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return tensors | {"position_ids": torch.arange(5), "frozen": torch.ones(4, 4, dtype=dtype)}


def fine_tuned(base, seed, dtype=torch.float32):
    change = model(seed)
    return {
        name: tensor if name in ("position_ids", "frozen") else tensor.to(dtype) + 0.01 * change[name].to(dtype)
        for name, tensor in base.items()
    }


@pytest.fixture
def base():
    return model(0)


@pytest.fixture
def tasks(base):
    return {f"task-{seed}": Checkpoint.from_tensors(fine_tuned(base, seed)) for seed in (1, 2, 3)}


def test_whole_model_is_the_merge_of_its_parameters(path, base, tasks):
    merged = merge(Checkpoint.from_tensors(base), tasks, alpha=0.7)
    assert set(merged) == set(base)
    for name, start in base.items():
        assert merged[name].dtype == start.dtype
        deltas = [task[name] - start for task in tasks.values()]
        if name in ("position_ids", "frozen", "empty"):
            expected = start
        elif start.ndim == 2 and name != "text_projection":
            expected = start + merge_matrix(deltas, alpha=0.7)
        else:
            expected = start + 0.7 * sum(deltas) / 3
        assert torch.allclose(merged[name], expected, atol=1e-6), name


@pytest.mark.parametrize("method", method_names())
def test_same_bits_for_any_order_and_thread_count(path, base, tasks, method):
    start = Checkpoint.from_tensors(base)
    digest = merge(start, tasks, method, threads=1).digest
    backwards = dict(reversed(tasks.items()))
    for threads in (1, 2, 3):
        assert merge(start, backwards, method, threads=threads).digest == digest


@pytest.mark.slow
def test_same_bytes_for_any_hash_seed(base, tasks, tmp_path):
    paths = {}
    for name, tensors in {"base": base, **tasks}.items():
        paths[name] = tmp_path / f"{name}.safetensors"
        merge_path = Checkpoint.from_tensors(dict(tensors))
        _write(paths[name], merge_path)
    script = (
        "import sys, tsvlib; from pathlib import Path; from tsvlib import open_checkpoint as o; p = Path(sys.argv[1]);"
        "tsvlib.merge(o(p / 'base.safetensors'), {f'task-{i}': o(p / f'task-{i}.safetensors') for i in (2, 1, 3)},"
        " out=p / 'out.safetensors')"
    )
    results = []
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()}
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
        results.append((tmp_path / "out.safetensors").read_bytes())
    assert results[0] == results[1]
    start = open_checkpoint(paths["base"])
    ours = merge(start, {name: open_checkpoint(path) for name, path in paths.items() if name != "base"})
    assert ours.digest == open_checkpoint(tmp_path / "out.safetensors").digest


def _write(path, checkpoint):
    return write_checkpoint(path, checkpoint.specs, checkpoint.items())


def test_provenance(base, tasks, tmp_path):
    start = Checkpoint.from_tensors(base)
    policy = KeyPolicy(conv="matrix")
    merged = merge(start, tasks, "tsv-m", out=tmp_path / "merged.safetensors", key_policy=policy, alpha=0.5)
    metadata = merged.metadata
    assert metadata["kind"] == "merged"
    assert metadata["method"] == "tsv-m"
    assert metadata["parameters"]["alpha"] == 0.5
    assert metadata["mode"] == "exact"
    assert KeyPolicy.model_validate(metadata["key_policy"]) == policy
    assert metadata["base"] == {"digest": start.digest}
    assert metadata["tasks"] == {name: task.digest for name, task in tasks.items()}
    assert "tsvlib" in metadata["versions"]


@pytest.mark.parametrize(("base_dtype", "task_dtype", "expected"), [
    (torch.float16, torch.float32, torch.float32), (torch.float32, torch.float16, torch.float32),
    (torch.float16, torch.bfloat16, torch.float32), (torch.float32, torch.float64, torch.float64),
    (torch.float16, torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16, torch.bfloat16),
])  # fmt: skip
def test_dtypes(base_dtype, task_dtype, expected):
    start = model(0, base_dtype)
    tasks = {str(seed): Checkpoint.from_tensors(fine_tuned(start, seed, task_dtype)) for seed in (1, 2)}
    merged = merge(Checkpoint.from_tensors(start), tasks, "average")
    name = "visual.proj"
    assert merged[name].dtype == expected
    exact = sum(task[name].double() for task in tasks.values()) / 2
    assert torch.allclose(merged[name].double(), exact, rtol=2 * torch.finfo(expected).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_chosen_dtype(tmp_path, dtype):
    start = model(0)
    tasks = {str(seed): Checkpoint.from_tensors(fine_tuned(start, seed)) for seed in (1, 2)}
    written = merge(Checkpoint.from_tensors(start), tasks, "average", out=tmp_path / "m.safetensors", dtype=dtype)
    kept = merge(Checkpoint.from_tensors(start), tasks, "average")
    for name in start:
        floating = start[name].is_floating_point()
        assert torch.equal(written[name], kept[name].to(FLOAT_DTYPES[dtype]) if floating else start[name])
    assert written.metadata["dtype"] == dtype
    in_memory = merge(Checkpoint.from_tensors(start), tasks, "average", dtype=dtype)
    assert in_memory.digest == written.digest


def test_an_unknown_dtype():
    start = Checkpoint.from_tensors(model(0))
    with pytest.raises(MethodError, match=r"dtype = 'int8': choose one of fp16, bf16, fp32\."):
        merge(start, {"a": start}, dtype="int8")


def test_values_that_the_chosen_dtype_cannot_hold(tmp_path):
    start = {"visual.proj": torch.full((2, 2), 7e4)}
    tasks = {"a": Checkpoint.from_tensors({"visual.proj": torch.full((2, 2), 8e4)})}
    with pytest.raises(NumericalError) as caught:
        merge(Checkpoint.from_tensors(start), tasks, "average", out=tmp_path / "m.safetensors", dtype="fp16")
    assert str(caught.value) == (
        "<in memory>: the merged key 'visual.proj': holds 8e+04, which F16 cannot: its largest value is 6.55e+04. "
        "Choose a dtype of wider range, such as bf16 or fp32."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", [
    KeyPolicy(qkv="split"), KeyPolicy(conv="matrix"), KeyPolicy(embeddings="mean"), KeyPolicy(text_projection="matrix"),
])  # fmt: skip
def test_key_policy_changes_what_it_names_only(base, tasks, policy):
    start = Checkpoint.from_tensors(base)
    usual, other = merge(start, tasks), merge(start, tasks, key_policy=policy)
    changed = {name for name in base if not torch.equal(usual[name], other[name])}
    (expected,) = {
        "split": ["visual.block.attn.in_proj_weight"], "conv": ["visual.conv1.weight"],
        "embeddings": ["visual.positional_embedding"], "text_projection": ["text_projection"],
    }.get("split" if policy.qkv == "split" else next(iter(policy.model_dump(exclude_defaults=True))))  # fmt: skip
    assert changed == {expected}


def test_factors_come_from_the_source_that_is_given(base, tasks):
    start = Checkpoint.from_tensors(base)
    asked = []

    def source(matrix, k, mode):
        asked.append((matrix.key, matrix.task, k, mode))
        return factorise(matrix, k, mode)

    assert merge(start, tasks, factor_source=source).digest == merge(start, tasks).digest
    assert ("visual.proj", "task-1", 2, "exact") in asked
    assert len(asked) == 3 * 6


def test_progress(base, tasks):
    calls = []
    merge(Checkpoint.from_tensors(base), tasks, progress=lambda *call: calls.append(call))
    assert [done for _, done, _ in calls] == list(range(1, len(base) + 1))
    assert {name for name, _, _ in calls} == set(base)
    assert {total for _, _, total in calls} == {len(base)}


def test_nan_names_file_key_and_task(base, tasks, tmp_path):
    broken = fine_tuned(base, 4)
    broken["visual.proj"][0, 0] = math.nan
    path = tmp_path / "broken.safetensors"
    _write(path, Checkpoint.from_tensors(broken))
    out = tmp_path / "merged.safetensors"
    with pytest.raises(NumericalError, match=r"broken\.safetensors: key 'visual\.proj' of task 'bad': 1 of 128 values"):
        merge(Checkpoint.from_tensors(base), tasks | {"bad": open_checkpoint(path)}, out=out)
    assert not out.exists()


def test_mismatches_are_reported_before_anything_is_computed(base, tasks):
    del base["visual.proj"]
    with pytest.raises(MismatchError, match=r"has the key 'visual\.proj', not in the base"):
        merge(Checkpoint.from_tensors(base), tasks, factor_source=None)


def test_no_tasks(base):
    with pytest.raises(MethodError, match=r"^nothing to merge: give at least one task\.$"):
        merge(Checkpoint.from_tensors(base), {})


@pytest.mark.parametrize(("options", "message"), [
    ({"mode": "quick"}, r"^mode = 'quick': choose exact, fast or reference\.$"),
    ({"threads": 0}, r"^threads = 0: must be at least 1\.$"),
    ({"device": "nowhere"}, r"^device = 'nowhere': not available here \("),
    ({"device": "meta", "mode": "fast"}, r"^device = 'meta': takes exact mode only, not 'fast'\.$"),
])  # fmt: skip
def test_wrong_options(base, tasks, options, message):
    with pytest.raises(MethodError, match=message):
        merge(Checkpoint.from_tensors(base), tasks, "average", **options)


def test_integers_are_the_bases(base, tasks):
    moved = fine_tuned(base, 4) | {"position_ids": torch.arange(5) + 1}
    merged = merge(Checkpoint.from_tensors(base), tasks | {"moved": Checkpoint.from_tensors(moved)})
    assert torch.equal(merged["position_ids"], base["position_ids"])


def test_warnings_name_the_parameter(base, tasks):
    still = fine_tuned(base, 5) | {"visual.proj": base["visual.proj"]}
    with pytest.warns(TSVWarning, match=r"^visual\.proj: the delta of task 'still' is zero"):
        merge(Checkpoint.from_tensors(base), tasks | {"still": Checkpoint.from_tensors(still)})


PEAK = """
import sys, torch, tsvlib, tsvlib.factors
from pathlib import Path
folder, count = Path(sys.argv[1]), int(sys.argv[2])
def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
peaks = []
tasks = {str(i): tsvlib.open_checkpoint(folder / f"{i % 4}.safetensors") for i in range(count)}
base = tsvlib.open_checkpoint(folder / "base.safetensors")
source = tsvlib.factors.factorise
def watched(matrix, k, mode):
    found = source(matrix, k, mode)
    peaks.append(anonymous())
    return found
tsvlib.merge(base, tasks, out=folder / "warm.safetensors", threads=1)
before = anonymous()
tsvlib.merge(base, tasks, out=folder / "out.safetensors", threads=1, factor_source=watched)
print(max(peaks) - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_tasks(tmp_path):
    """Holding all deltas would take 4 MB more for each further task."""
    names = ["0.weight", "1.weight"]
    for number, file in enumerate(("base", 0, 1, 2, 3)):
        tensors = {name: torch.randn(8192, 128, generator=torch.Generator().manual_seed(number)) for name in names}
        _write(tmp_path / f"{file}.safetensors", Checkpoint.from_tensors(tensors))
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}
    few, many = 8, 72
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(tmp_path), count], env=environment, check=True, capture_output=True
            ).stdout
        )
        for count in (str(few), str(many))
    ]
    held = (many - few) * 4 * 8192 * 128  # bytes; allocators and mapped files alone move by tens of megabytes
    assert (peaks[1] - peaks[0]) * 1024 < held / 2


# --- cost ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("m", "n", "least"), [(3072, 768, 2.5), (768, 768, 1.5)])
def test_faster_than_the_authors_algorithm(m, n, least):
    """CPU time on one thread, in one process."""
    deltas = task_matrices(m, n, 8)
    with single_threaded_blas():
        ours = min(_cpu_seconds(lambda: merge_matrix(deltas)) for _ in range(2))
        theirs = _cpu_seconds(lambda: plain_tsv_merge(deltas, 96, torch.float32))
    assert theirs / ours >= least


def _cpu_seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start
