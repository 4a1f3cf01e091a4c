"""Each method against a slow, obvious implementation, and the registry."""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from spectra import orthonormal, plain_polar, plain_tsv_merge, power_law, relative_error, task_matrices, with_spectrum

from tsvlib import merge_matrix
from tsvlib.errors import MethodError, TSVWarning
from tsvlib.masks import magnitude_mask, tall_masks
from tsvlib.methods import MethodParameters, get_method, method_names
from tsvlib.methods.svc import calibrated

NAMES = [
    "aswudi", "average", "consensus-ta", "dare-ties", "iso-c", "iso-cts", "low-rank-sum", "orthogonal-sum",
    "task-arithmetic", "ties", "tsv-m", "tsv-m-eigh",
]  # fmt: skip


@pytest.fixture(params=[(24, 16), (16, 24), (16, 16)], ids=str)
def deltas(request):
    return task_matrices(*request.param, tasks=4)


def close(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    assert relative_error(found, expected) <= tolerance


def each_entry(deltas, rule):
    """rule(list of the tasks' values) -> value, entry by entry."""
    stacked = torch.stack([delta.double() for delta in deltas])
    values = [rule(column.tolist()) for column in stacked.reshape(len(deltas), -1).T]
    return torch.tensor(values, dtype=torch.float64).reshape(deltas[0].shape)


def test_average(deltas):
    close(merge_matrix(deltas, "average"), each_entry(deltas, lambda values: sum(values) / len(values)), 1e-6)


def test_task_arithmetic(deltas):
    close(merge_matrix(deltas, "task-arithmetic", alpha=1.0), each_entry(deltas, sum), 1e-6)
    close(merge_matrix(deltas, "task-arithmetic"), 0.3 * each_entry(deltas, sum), 1e-6)
    close(merge_matrix(deltas, "task-arithmetic", alpha=1 / 4), merge_matrix(deltas, "average"), 1e-6)


def test_low_rank_sum(deltas):
    expected = torch.zeros(deltas[0].shape, dtype=torch.float64)
    for delta in deltas:
        U, S, Vh = torch.linalg.svd(delta.double(), full_matrices=False)
        for j in range(16 // 4):
            expected += S[j] * torch.outer(U[:, j], Vh[j])
    close(merge_matrix(deltas, "low-rank-sum"), expected)


@pytest.mark.parametrize("method", ["tsv-m", "tsv-m-eigh"])
@pytest.mark.parametrize("rank_fraction", [None, 0.125, 0.5])
def test_tsv_merge(deltas, method, rank_fraction):
    k = 4 if rank_fraction is None else int(16 * rank_fraction)
    close(merge_matrix(deltas, method, rank_fraction=rank_fraction), plain_tsv_merge(deltas, k))


def test_whitening_survives_shared_directions():
    """Where the authors' eigendecomposition divides by noise, both variants give the same finite answer."""
    first, second = task_matrices(24, 16, tasks=2)
    duplicated = [first, second, first, second]
    with pytest.warns(TSVWarning, match="share directions"):
        expected = merge_matrix(duplicated, "tsv-m")
    close(merge_matrix(duplicated, "tsv-m-eigh"), expected)


def test_orthogonal_sum(deltas):
    close(merge_matrix(deltas, "orthogonal-sum"), plain_tsv_merge(deltas, 16))


def test_orthogonal_sum_of_square_matrices_is_the_mean():
    """UUᵀ = T·I there, so that orthogonalising divides both sides by √T (Gargiulo et al. 2025, proof of Thm 6.1)."""
    deltas = task_matrices(16, 16, tasks=5)
    close(merge_matrix(deltas, "orthogonal-sum"), merge_matrix(deltas, "average"))


def test_ties(deltas):
    density = 0.3
    kept = round(density * deltas[0].numel())
    trimmed = []
    for delta in deltas:
        smallest = sorted(abs(value) for value in delta.flatten().tolist())[-kept]
        trimmed.append(torch.where(delta.abs() >= smallest, delta, 0))

    def rule(values):
        sign = math.copysign(1, sum(values)) if sum(values) else 0
        agreeing = [value for value in values if value * sign > 0]
        return sum(agreeing) / len(agreeing) if agreeing else 0

    close(merge_matrix(deltas, "ties", density=density), each_entry(trimmed, rule))


def test_ties_resolves_cancelling_entries_by_the_majority():
    one, two = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[-3.0, 2.0, 1.0]])
    assert merge_matrix([one, two], "ties", density=1.0).tolist() == [[3.0, 2.0, 1.0]]


def test_dare_ties_of_one_task_drops_and_rescales():
    delta = torch.rand(100, 100, generator=torch.Generator().manual_seed(0)) + 1
    merged = merge_matrix([delta], "dare-ties", density=0.25)
    kept = merged != 0
    assert 0.23 < kept.float().mean() < 0.27
    assert torch.equal(merged[kept], (delta / 0.25)[kept])


def test_dare_ties_depends_on_the_seed_alone():
    deltas = task_matrices(24, 16, tasks=3)
    assert torch.equal(merge_matrix(deltas, "dare-ties"), merge_matrix(deltas, "dare-ties"))
    close(merge_matrix(deltas[::-1], "dare-ties"), merge_matrix(deltas, "dare-ties"), 1e-6)
    assert not torch.equal(merge_matrix(deltas, "dare-ties"), merge_matrix(deltas, "dare-ties", seed=1))


def test_consensus(deltas):
    def rule(values):
        total = sum(values)
        needing = [value for value in values if abs(value) >= 0.4 * abs(total - value)]
        return total if len(needing) >= 2 else 0

    close(merge_matrix(deltas, "consensus-ta", alpha=1.0), each_entry(deltas, rule), 1e-6)


def test_consensus_of_one_task_is_the_task():
    (delta,) = task_matrices(8, 6, tasks=1)
    close(merge_matrix([delta], "consensus-ta", alpha=1.0), delta, 1e-7)


def test_iso_c(deltas):
    U, S, Vh = torch.linalg.svd(sum(delta.double() for delta in deltas), full_matrices=False)
    close(merge_matrix(deltas, "iso-c"), (U * S.mean()) @ Vh)


@pytest.mark.parametrize("common", [0.0, 0.5, 0.8, 1.0])
def test_iso_cts(deltas, common):
    total = sum(delta.double() for delta in deltas)
    r, T = 16, 4
    of_tasks = round((r - int(common * r)) / T) * T
    k, s = r - of_tasks, of_tasks // T
    U, S, Vh = (part.clone() for part in torch.linalg.svd(total, full_matrices=False))
    lefts, values, rights = [U[:, :k]], [S[:k]], [Vh[:k]]
    for delta in deltas:
        rest = delta.double() - U[:, :k] @ U[:, :k].T @ delta.double()
        left, value, right = torch.linalg.svd(rest, full_matrices=False)
        lefts.append(left[:, :s])
        values.append(value[:s])
        rights.append(right[:s])
    merged = torch.cat(values).mean() * plain_polar(torch.cat(lefts, dim=1)) @ plain_polar(torch.cat(rights))
    close(merge_matrix(deltas, "iso-cts", common=common), merged)


def test_aswudi(deltas):
    T = len(deltas)
    deltas64 = [delta.double() for delta in deltas]
    weights = [1 / delta.square().sum() for delta in deltas64]
    C = sum(weights[t] * deltas64[t].T @ deltas64[t] for t in range(T))
    D = sum(weights[t] * deltas64[t] @ deltas64[t].T @ deltas64[t] for t in range(T))
    total = sum(deltas64)
    U, eigenvalues, _ = torch.linalg.svd(C)
    eigenvalues = eigenvalues.clamp(min=1e-8)
    K = math.ceil(eigenvalues.sqrt().sum() ** 2 / eigenvalues.sum())
    V = U[:, :K]
    expected = total - total @ V @ V.T + D @ V @ torch.diag(1 / eigenvalues[:K]) @ V.T
    close(merge_matrix(deltas, "aswudi"), expected)


def test_aswudi_on_the_whole_spectrum_is_least_squares():
    """With a flat spectrum nothing is cut off, and WUDI's objective has gradient zero at the result."""
    deltas = [with_spectrum(20, 8, torch.ones(8, dtype=torch.float64), seed) for seed in range(3)]
    merged = merge_matrix(deltas, "aswudi").double()
    gradient = sum((merged - delta) @ delta.double().T @ delta.double() / delta.square().sum() for delta in deltas)
    assert gradient.norm() <= 1e-5 * merged.norm()


def test_svc(deltas):
    merged = merge_matrix(deltas, "task-arithmetic", alpha=0.5)
    U, S, Vh = torch.linalg.svd(merged.double(), full_matrices=False)
    T, expected = len(deltas), torch.zeros(merged.shape, dtype=torch.float64)
    for r in range(len(S)):
        shares = []
        for delta in deltas:
            ours, theirs = U[:, r] @ merged.double(), U[:, r] @ delta.double()
            shares.append(max(1 / T, float(ours @ theirs / theirs.square().sum())))
        expected += S[r] * T / sum(shares) * torch.outer(U[:, r], Vh[r])
    close(calibrated(merged, deltas), expected, 1e-4)
    close(merge_matrix(deltas, "task-arithmetic", alpha=0.5, post="svc"), expected, 1e-4)


def test_svc_leaves_one_task_alone():
    (delta,) = task_matrices(12, 8, tasks=1)
    close(merge_matrix([delta], "average", post="svc"), delta)


def test_svc_floor():
    deltas = task_matrices(24, 16, tasks=3)
    merged = merge_matrix(deltas, "tsv-m")
    close(merge_matrix(deltas, "tsv-m", post="svc"), calibrated(merged, deltas, 1.0), 1e-6)
    close(merge_matrix(deltas, "tsv-m", post="svc", svc_floor=0.1), calibrated(merged, deltas, 0.1), 1e-6)


def test_tall_masks(deltas):
    masks, total = tall_masks(deltas, 0.3)
    close(total, each_entry(deltas, sum), 1e-6)
    for mask, delta in zip(masks, deltas, strict=True):
        for kept, own, whole in zip(mask.flatten(), delta.flatten(), total.flatten(), strict=True):
            assert kept == (abs(own) >= 0.3 * abs(whole - own))


def test_tall_mask_of_one_task_keeps_all():
    masks, total = tall_masks([torch.ones(2, 2)])
    assert masks[0].all()
    assert torch.equal(total, torch.ones(2, 2))


def test_magnitude_mask():
    delta = torch.tensor([[0.1, -3.0], [2.0, -0.2]])
    assert magnitude_mask(delta, 0.5).tolist() == [[False, True], [True, False]]
    assert magnitude_mask(delta, 1.0).all()
    assert magnitude_mask(delta, 1e-6).sum() == 1
    assert magnitude_mask(torch.zeros(0), 0.5).shape == (0,)


@pytest.mark.parametrize("density", [0, -1, 1.5])
def test_density_out_of_range(density):
    with pytest.raises(MethodError, match=rf"^density = {density}: must be above 0 and at most 1\.$"):
        magnitude_mask(torch.ones(2, 2), density)


def test_threshold_out_of_range():
    with pytest.raises(MethodError, match=r"^threshold = 0: must be above 0\.$"):
        tall_masks([torch.ones(2, 2)], 0)


@pytest.mark.parametrize("method", NAMES)
def test_every_method_is_equivariant_to_scale_and_indifferent_to_order(method):
    deltas = task_matrices(20, 12, tasks=3, decay=0.5)
    merged = merge_matrix(deltas, method)
    if method != "dare-ties":  # its choice is seeded by the values
        close(merge_matrix([3 * delta for delta in deltas], method), 3 * merged)
    close(merge_matrix([deltas[2], deltas[0], deltas[1]], method), merged)


@pytest.mark.parametrize("method", NAMES)
def test_every_method_survives_zeros(method):
    zeros = [torch.zeros(6, 4) for _ in range(3)]
    assert not merge_matrix(zeros, method).any()
    mixed = [*task_matrices(6, 4, tasks=2), torch.zeros(6, 4)]
    expected = pytest.warns(TSVWarning, match="task '2' is zero") if get_method(method).rank else nullcontext()
    with expected:
        assert torch.isfinite(merge_matrix(mixed, method)).all()


def test_names():
    assert method_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_method_says_what_it_does_and_where_it_comes_from(name):
    method = get_method(name)
    assert method.summary.endswith(".")
    assert method.others_summary.endswith(".")
    assert any(character.isdigit() for character in method.source)
    assert "alpha" in method.parameters.model_fields


def test_unknown_method():
    with pytest.raises(MethodError, match=r"^unknown method 'tsvm'\. Did you mean 'tsv-m'\? Known methods: aswudi, "):
        get_method("tsvm")
    with pytest.raises(MethodError, match=r"^unknown method 'zzz'\. Known methods: "):
        get_method("zzz")


def test_unknown_parameter():
    with pytest.raises(
        MethodError, match=r"^method 'average' takes no parameter 'beta'; it takes alpha, post, svc_floor\.$"
    ):
        merge_matrix([torch.ones(2, 2)], "average", beta=1)


@pytest.mark.parametrize(("method", "parameters", "message"), [
    ("tsv-m", {"rank_fraction": 1.5}, "method 'tsv-m': rank_fraction = 1.5: Input should be less than or equal to 1."),
    ("tsv-m", {"tolerance": 0}, "method 'tsv-m': tolerance = 0: Input should be greater than or equal to 0.000001."),
    ("ties", {"density": 0}, "method 'ties': density = 0: Input should be greater than 0."),
    ("average", {"alpha": "x"}, "method 'average': alpha = 'x': Input should be a valid number"),
    ("average", {"alpha": math.nan}, "method 'average': alpha = nan: Input should be a finite number."),
    ("average", {"post": "x"}, "method 'average': post = 'x': Input should be 'svc'."),
])  # fmt: skip
def test_wrong_parameter(method, parameters, message):
    with pytest.raises(MethodError) as error:
        merge_matrix([torch.ones(2, 2)], method, **parameters)
    assert str(error.value).startswith(message)


def test_all_wrong_parameters_are_reported():
    with pytest.raises(MethodError) as error:
        get_method("ties").parse({"density": 0, "beta": 1})
    assert len(str(error.value).splitlines()) == 2


def test_parameters_are_frozen():
    parameters = get_method("average").parse({})
    assert isinstance(parameters, MethodParameters)
    with pytest.raises(ValueError, match="frozen"):
        parameters.alpha = 2


def test_tasks_in_orthogonal_spaces_are_summed():
    U, V = orthonormal(40, 12, 0), orthonormal(30, 12, 1)
    deltas = [((U[:, i::3] * power_law(4, 0.5)) @ V[:, i::3].T).float() for i in range(3)]
    close(merge_matrix(deltas, "tsv-m", rank_fraction=4 / 30), sum(deltas))


@pytest.mark.parametrize("name", NAMES)
def test_documentation_says_the_same(name):
    method = get_method(name)
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    for part in (method.summary, method.others_summary, method.source):
        assert part in row
