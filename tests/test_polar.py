import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectra import orthonormal, plain_polar, power_law, relative_error, with_spectrum

from tsvlib import polar_factor
from tsvlib.batched import batched_polar
from tsvlib.errors import MethodError, NumericalError
from tsvlib.polar import TOLERANCE, polar, polar_times

SHAPES = [(60, 20), (20, 60), (32, 32), (5, 7), (1, 9), (9, 1), (1, 1)]
few = settings(max_examples=8, deadline=None)


def check_polar(P, X, rank):
    """Orthonormal on the row space, and PᵀX symmetric positive semidefinite."""
    singular_values = torch.linalg.svdvals(P.double())
    assert torch.allclose(singular_values[:rank], torch.ones(rank, dtype=torch.float64), atol=1e-5)
    assert (singular_values[rank:] < 1e-5).all()
    H = P.double().T @ X.double()
    assert (H - H.T).abs().max() <= 1e-5 * X.abs().max()
    assert torch.linalg.eigvalsh((H + H.T) / 2).min() >= -1e-5 * X.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 10**6))
@few
def test_full_rank(shape, seed):
    X = with_spectrum(*shape, power_law(min(shape), 0.5), seed)
    P = polar_factor(X)
    check_polar(P, X, min(shape))
    assert relative_error(P, plain_polar(X.double())) <= 1e-5


def test_ill_conditioned_block_of_singular_vectors():
    """Concatenated singular vectors are nearly square: with a float32 Gram matrix the error here would be 5e-2."""
    X = with_spectrum(96, 96, torch.linspace(1.5, 1e-3, 96, dtype=torch.float64), 1)
    P = polar_factor(X)
    check_polar(P, X, 96)
    assert relative_error(P, plain_polar(X.double())) <= 1e-5


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
@pytest.mark.parametrize("rank", [1, 7, 29])
def test_rank_deficient(shape, rank):
    X = with_spectrum(*shape, power_law(rank, 0.5), 2)
    check_polar(polar_factor(X), X, rank)


def test_shared_directions_count_once():
    U = orthonormal(20, 4, 0).float()
    assert relative_error(polar_factor(torch.cat([U, U], dim=1)), torch.cat([U, U], dim=1) / 2**0.5) <= 1e-6


def test_directions_below_the_tolerance_are_dropped():
    X = with_spectrum(30, 20, torch.tensor([1.0, 0.5, 2e-3, 5e-4], dtype=torch.float64), 3)
    assert torch.linalg.matrix_rank(polar_factor(X, 1e-3), atol=0.1) == 3
    assert torch.linalg.matrix_rank(polar_factor(X, 1e-4), atol=0.1) == 4


def test_zero_matrix():
    assert not polar_factor(torch.zeros(5, 3)).any()
    assert polar_factor(torch.zeros(5, 0)).shape == (5, 0)


@pytest.mark.parametrize("scale", [2.0**-100, 1e-20, 1e18])
def test_scale_does_not_matter(scale):
    X = with_spectrum(30, 20, power_law(20, 0.5), 4)
    assert relative_error(polar_factor(X * scale), polar_factor(X)) <= 1e-5


def test_float64_keeps_its_digits():
    X = torch.randn(30, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    P = polar_factor(X)
    assert P.dtype == torch.float64
    assert (P.T @ P - torch.eye(20, dtype=torch.float64)).abs().max() <= 1e-13


@pytest.mark.parametrize("shape", [(90, 30), (40, 30), (20, 30)])
def test_polar_times(shape):
    X = torch.cat([orthonormal(shape[0], 10, seed) for seed in range(3)], dim=1).float()
    right = torch.randn(30, 15, generator=torch.Generator().manual_seed(0))
    product, smallest = polar_times(X, right, TOLERANCE)
    P, expected_smallest = polar(X, TOLERANCE)
    assert relative_error(product, P @ right) <= 1e-5
    assert smallest == pytest.approx(expected_smallest, rel=1e-3, abs=1e-6)


def test_smallest_singular_value_is_reported():
    assert polar(with_spectrum(30, 3, torch.tensor([2.0, 1.0, 0.01]).double(), 5), TOLERANCE)[1] == pytest.approx(0.005)


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-4, 0.0])
def test_batched_agrees(smallest):
    X = with_spectrum(40, 30, torch.linspace(1, smallest, 30, dtype=torch.float64), 6)
    P, conditioning = batched_polar(X, TOLERANCE)
    assert relative_error(P, polar_factor(X)) <= (1e-5 if smallest != 1e-4 else 1e-4)
    assert (conditioning < TOLERANCE) == (smallest == 0)


@pytest.mark.parametrize("tolerance", [0, 1e-7, 1.0])
def test_tolerance_out_of_range(tolerance):
    with pytest.raises(MethodError, match=rf"^tolerance = {tolerance}: must lie between 1e-6 and below 1\.$"):
        polar_factor(torch.ones(3, 3), tolerance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(value):
    with pytest.raises(NumericalError, match="NaN or Inf"):
        polar_factor(torch.tensor([[1.0, value]]))


@pytest.mark.parametrize("matrix", [torch.ones(4), torch.ones(3, 3, dtype=torch.int64)])
def test_only_floating_point_matrices(matrix):
    with pytest.raises(NumericalError, match="Expected a floating-point matrix"):
        polar_factor(matrix)
