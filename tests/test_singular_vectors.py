import math
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra import orthonormal, power_law, relative_error, with_spectrum

from tsvlib import lapack, singular_vectors, top_singular_triplets
from tsvlib.errors import MethodError, NumericalError
from tsvlib.singular_vectors import FAST_TOLERANCE, find_triplets, find_triplets_batched

SHAPES = [(60, 20), (20, 60), (32, 32), (5, 7), (1, 9), (9, 1), (1, 1), (3, 2)]
few = settings(max_examples=8, deadline=None)


def rank_k(U, S, Vh):
    return (U.double() * S.double()) @ Vh.double()


def check_optimal(matrix, k, mode="exact"):
    """Orthonormal, with the right singular values, and as near as any matrix of rank k can be."""
    U, S, Vh = top_singular_triplets(matrix, k, mode)
    assert U.shape == (matrix.shape[0], k)
    assert S.shape == (k,)
    assert Vh.shape == (k, matrix.shape[1])
    expected = torch.linalg.svdvals(matrix.double())
    identity = torch.eye(k)
    tolerance = 1e-5 if mode == "exact" else 1e-3
    assert (Vh @ Vh.T - identity).abs().max() <= tolerance
    assert (U.T @ U - identity).abs().max() <= 10 * tolerance
    assert torch.allclose(S.double(), expected[:k], rtol=tolerance, atol=0)
    residual = (matrix.double() - rank_k(U, S, Vh)).square().sum()
    assert residual <= expected[k:].square().sum() + 1e-6 * expected.square().sum()


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
@few
def test_exact_triplets_are_optimal(shape, seed, share):
    rank = min(shape)
    matrix = with_spectrum(*shape, power_law(rank, 0.5, 0.02), seed)
    check_optimal(matrix, max(1, round(share * rank)))


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_other_modes_are_optimal_within_their_bounds(mode):
    check_optimal(with_spectrum(60, 40, power_law(40, 0.5), 0), 8, mode)


@pytest.mark.parametrize("k", [4, 8, 12])
def test_optimal_at_ties(k):
    """At a tie the vectors are anyone's choice, but what they capture is not."""
    spectrum = torch.cat([torch.full((8,), 1.0), torch.full((8,), 0.5), power_law(8, 1.0) / 10]).double()
    check_optimal(with_spectrum(48, 24, spectrum, 3), k)


def test_all_singular_values_equal():
    check_optimal(with_spectrum(30, 20, torch.ones(20, dtype=torch.float64), 4), 5)


def test_steep_spectrum_needs_a_float64_gram_matrix():
    """s_k / s_1 = 1e-4: a float32 Gram matrix would be off by 0.5 here."""
    matrix = with_spectrum(200, 100, power_law(100, 2.0), 5)
    expected = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = top_singular_triplets(matrix, 99)
    assert relative_error(found[2].abs(), expected.Vh[:99].abs()) <= 1e-4
    assert (found[0].T @ found[0] - torch.eye(99)).abs().max() <= 1e-5


@pytest.mark.parametrize("exponent", [-100, -60, 60])
def test_scaling_by_a_power_of_two_changes_no_bit(exponent):
    matrix = with_spectrum(40, 30, power_law(30, 0.5), 6)
    U, S, Vh = top_singular_triplets(matrix, 5)
    U_scaled, S_scaled, Vh_scaled = top_singular_triplets(torch.ldexp(matrix, torch.tensor(exponent)), 5)
    assert torch.equal(U, U_scaled)
    assert torch.equal(Vh, Vh_scaled)
    assert torch.equal(torch.ldexp(S, torch.tensor(exponent)), S_scaled)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-8, 1e8, 1e18])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_extreme_scales(scale, mode):
    matrix = with_spectrum(40, 30, power_law(30, 0.5), 6)
    U, S, Vh = top_singular_triplets(matrix * scale, 5, mode)
    assert relative_error(S.double() / scale, torch.linalg.svdvals(matrix.double())[:5]) <= 1e-5
    assert relative_error(rank_k(U, S.double() / scale, Vh), rank_k(*top_singular_triplets(matrix, 5))) <= 1e-4


def test_memory_layout_does_not_matter():
    matrix = with_spectrum(40, 30, power_law(30, 0.5), 7)
    column_major = matrix.T.contiguous().T
    every_other = torch.stack([matrix, matrix], dim=2)[..., 0]
    for other in (column_major, every_other):
        assert not other.is_contiguous()
        for one, two in zip(top_singular_triplets(matrix, 5), top_singular_triplets(other, 5), strict=True):
            assert torch.equal(one, two)


def test_transposition_swaps_the_sides():
    matrix = with_spectrum(40, 30, power_law(30, 0.5), 7)
    U, S, Vh = top_singular_triplets(matrix, 5)
    U_transposed, S_transposed, Vh_transposed = top_singular_triplets(matrix.T, 5)
    assert torch.equal(U, Vh_transposed.T)
    assert torch.equal(S, S_transposed)
    assert torch.equal(Vh, U_transposed.T)


@pytest.mark.parametrize(("dtype", "expected"), [
    (torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64),
])  # fmt: skip
def test_other_dtypes(dtype, expected):
    matrix = with_spectrum(40, 30, power_law(30, 0.5), 8).to(dtype)
    U, S, Vh = top_singular_triplets(matrix, 5)
    assert U.dtype == S.dtype == Vh.dtype == expected
    assert torch.allclose(S.double(), torch.linalg.svdvals(matrix.double())[:5], rtol=1e-6)


def test_float64_keeps_its_digits():
    U, V = orthonormal(40, 30, 1), orthonormal(30, 30, 2)
    spectrum = power_law(30, 4.0)
    matrix = (U * spectrum) @ V.T
    assert torch.allclose(top_singular_triplets(matrix, 20)[1], spectrum[:20], rtol=1e-10)


def test_input_is_left_alone():
    matrix = with_spectrum(40, 30, power_law(30, 0.5), 9)
    before = matrix.clone()
    for mode in ("exact", "fast", "reference"):
        top_singular_triplets(matrix, 5, mode)
    assert torch.equal(matrix, before)


def test_triplets_that_do_not_exist_are_zero():
    matrix = with_spectrum(40, 30, power_law(3, 0.5), 10)
    U, S, Vh = top_singular_triplets(matrix, 6)
    assert (S[:3] > 0).all()
    assert not S[3:].any()
    assert not U[:, 3:].any()
    assert not Vh[3:].any()


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_zero_matrix(mode):
    for part in top_singular_triplets(torch.zeros(6, 4), 2, mode):
        assert not part.any()


def test_gap_at_the_cut():
    spectrum = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    matrix = with_spectrum(12, 5, spectrum, 11)
    assert find_triplets(matrix, 2).gap == pytest.approx(0.25, rel=1e-4)
    assert find_triplets(matrix, 3).gap == pytest.approx(0, abs=1e-6)
    assert find_triplets(matrix, 5).gap == math.inf
    assert find_triplets(torch.zeros(4, 4), 2).gap == math.inf


def test_fast_falls_back_to_exact_where_its_estimate_is_too_large():
    steep = with_spectrum(200, 100, power_law(100, 2.0), 12)
    found = find_triplets(steep, 60, "fast")
    assert found.mode == "exact"
    assert torch.equal(found.Vh, find_triplets(steep, 60, "exact").Vh)


@pytest.mark.parametrize("floor", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("decay", [0.5, 0.8, 1.0, 1.5, 2.0])
def test_fast_estimate_bounds_its_error(decay, floor):
    matrix = with_spectrum(400, 200, power_law(200, decay, floor), 13)
    found = find_triplets(matrix, 25, "fast")
    expected = torch.linalg.svd(matrix.double(), full_matrices=False)
    error = relative_error(rank_k(*found[:3]), (expected.U[:, :25] * expected.S[:25]) @ expected.Vh[:25])
    assert error <= FAST_TOLERANCE


def test_without_scipys_routines(monkeypatch):
    """NumPy's full eigensolver takes over, with the same accuracy."""
    matrix = with_spectrum(60, 40, power_law(40, 1.0, 0.02), 14)
    expected = rank_k(*top_singular_triplets(matrix, 6))

    def missing(module, name):
        raise lapack.LapackError(name)

    monkeypatch.setattr(lapack, "_routine", missing)
    assert relative_error(rank_k(*top_singular_triplets(matrix, 6)), expected) <= 1e-6
    check_optimal(matrix, 6)


def test_missing_routine_is_named():
    with pytest.raises(lapack.LapackError, match=r"SciPy has no cython_lapack\.dnothing"):
        lapack._routine("cython_lapack", "dnothing")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_partial_eigenpairs_agree_with_the_full_ones(dtype):
    matrix = with_spectrum(50, 40, power_law(40, 0.5), 15).numpy().astype(dtype)
    gramian = lapack.gram(matrix, dtype)
    assert np.allclose(np.triu(gramian), np.triu(matrix.T @ matrix), rtol=1e-4, atol=1e-5)
    values, vectors = lapack.top_eigenpairs(gramian, 7)
    all_values, all_vectors = lapack.eigenpairs(gramian)
    assert np.allclose(values, all_values[::-1][:7], rtol=1e-5)
    assert np.allclose(np.abs(vectors), np.abs(all_vectors[:, ::-1][:, :7]), atol=1e-4)


def test_gram_of_more_rows_than_are_converted_at_a_time(monkeypatch):
    matrix = with_spectrum(50, 8, power_law(8, 0.5), 16).numpy()
    whole = lapack.gram(matrix, np.float64)
    monkeypatch.setattr(lapack, "_ROWS", 7)
    assert np.allclose(lapack.gram(matrix, np.float64), whole, rtol=1e-14)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50)])
def test_batched_triplets_agree(shape):
    matrices = [with_spectrum(*shape, power_law(20, decay, 0.01), 17) * 2.0**-40 for decay in (0.5, 1.0)]
    for matrix, found in zip(matrices, find_triplets_batched(torch.stack(matrices), 4), strict=True):
        expected = find_triplets(matrix, 4)
        assert relative_error(rank_k(*found[:3]), rank_k(*expected[:3])) <= 1e-6
        assert found.gap == pytest.approx(expected.gap, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["exact", "fast", "reference"])
def test_nan_and_inf_are_refused_in_silence(value, mode, capfd):
    matrix = torch.ones(6, 4)
    matrix[2, 3] = value
    with pytest.raises(NumericalError, match=r"^The matrix holds NaN or Inf\.$"):
        top_singular_triplets(matrix, 2, mode)
    with pytest.raises(NumericalError, match=r"^The matrix holds NaN or Inf\.$"):
        find_triplets_batched(matrix[None], 2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_out_of_range(k):
    with pytest.raises(MethodError, match=rf"^k = {k}: must lie between 1 and 4 for shape \(6, 4\)\.$"):
        top_singular_triplets(torch.ones(6, 4), k)


def test_empty_matrix():
    with pytest.raises(MethodError, match=r"k = 1: must lie between 1 and 0 for shape \(0, 4\)"):
        top_singular_triplets(torch.ones(0, 4), 1)


def test_unknown_mode():
    with pytest.raises(MethodError, match=r"^mode = 'quick': choose exact, fast or reference\.$"):
        top_singular_triplets(torch.ones(6, 4), 1, "quick")


@pytest.mark.parametrize("matrix", [torch.ones(4), torch.ones(2, 2, 2), torch.ones(3, 3, dtype=torch.int64)])
def test_only_floating_point_matrices(matrix):
    with pytest.raises(NumericalError, match="Expected a floating-point matrix, not torch"):
        top_singular_triplets(matrix, 1)


def test_estimate_grows_as_the_gap_closes():
    estimate = singular_vectors._estimated_error
    wide, narrow = np.array([1.0, 0.5, 0.1]), np.array([1.0, 0.5, 0.499])
    assert estimate(wide, 2) < estimate(narrow, 2)
    assert estimate(wide, 3) < estimate(wide * [1, 1, 0.01], 3)


def test_other_threads_run_meanwhile():
    """The routines do not hold the interpreter lock: layers can be merged side by side."""
    gramian = lapack.gram(np.random.default_rng(0).standard_normal((1500, 1500)), np.float64)
    worker = threading.Thread(target=lapack.top_eigenpairs, args=(gramian, 100))
    worker.start()
    longest, last = 0.0, time.perf_counter()
    started = last
    while worker.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert longest < 0.5 * (last - started)
