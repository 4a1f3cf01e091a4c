import pytest
import torch
from spectra import orthonormal, power_law, task_matrices, with_spectrum

from tsvlib import singular_task_interference
from tsvlib.errors import MethodError
from tsvlib.interference import NORMS, interference_of, pairwise_task_interference
from tsvlib.singular_vectors import top_singular_triplets


def naive(deltas, k, norm):
    """Gargiulo et al. 2025, Eq. 6, entry by entry over the blocks of pairs of tasks."""
    triplets = [torch.linalg.svd(delta.double(), full_matrices=False) for delta in deltas]
    T = len(deltas)
    U = [U[:, :k] for U, _, _ in triplets]
    V = [Vh[:k].T for _, _, Vh in triplets]
    S = [torch.diag(S[:k]) for _, S, _ in triplets]
    whole = torch.zeros(T * k, T * k, dtype=torch.float64)
    for i in range(T):
        for j in range(T):
            for middle in range(T):
                left = U[i].T @ U[middle] - torch.eye(k) * (i == middle)
                right = V[middle].T @ V[j] - torch.eye(k) * (middle == j)
                whole[i * k : i * k + k, j * k : j * k + k] += left @ S[middle] @ right
    return float(
        {
            "entrywise_l1": whole.abs().sum(),
            "induced_l1": torch.linalg.matrix_norm(whole, 1),
            "frobenius": whole.square().sum().sqrt(),
            "nuclear": torch.linalg.svdvals(whole).sum(),
        }[norm]
    )


@pytest.mark.parametrize("norm", sorted(NORMS))
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_equals_the_definition(norm, shape):
    deltas = task_matrices(*shape, tasks=3, decay=0.7)
    assert singular_task_interference(deltas, norm=norm) == pytest.approx(naive(deltas, 8, norm), rel=1e-4)
    assert singular_task_interference(deltas, rank=5, norm=norm) == pytest.approx(naive(deltas, 5, norm), rel=1e-4)


def test_one_task_does_not_interfere():
    assert singular_task_interference(task_matrices(20, 10, tasks=1)) == 0


def test_orthogonal_tasks_do_not_interfere():
    U, V = orthonormal(40, 12, 0), orthonormal(30, 12, 1)
    deltas = [((U[:, i::3] * power_law(4, 0.5)) @ V[:, i::3].T).float() for i in range(3)]
    assert singular_task_interference(deltas, rank=4) <= 1e-5


def test_frobenius_does_not_depend_on_the_vectors_of_a_cluster():
    """Inside a cluster of equal singular values any rotation of the vectors is as good; a one-norm sees it."""
    triplets = [top_singular_triplets(with_spectrum(40, 30, torch.ones(6).double(), seed), 6) for seed in (1, 2)]
    rotation = orthonormal(6, 6, 3).float()
    rotated = [(U @ rotation, S, rotation.T @ Vh) for U, S, Vh in triplets]
    for norm in ("frobenius", "nuclear"):
        assert interference_of(rotated, norm) == pytest.approx(interference_of(triplets, norm), rel=1e-4)
    assert interference_of(rotated, "entrywise_l1") != pytest.approx(
        interference_of(triplets, "entrywise_l1"), rel=1e-3
    )


def test_order_of_the_tasks_does_not_matter():
    deltas = task_matrices(30, 20, tasks=4)
    assert singular_task_interference(deltas[::-1]) == pytest.approx(singular_task_interference(deltas), rel=1e-5)


def test_pairwise():
    deltas = task_matrices(30, 20, tasks=3)
    table = pairwise_task_interference(deltas, rank=5)
    assert table.shape == (3, 3)
    assert torch.equal(table, table.T)
    assert not table.diagonal().any()
    assert table[0, 2] == pytest.approx(singular_task_interference([deltas[0], deltas[2]], rank=5), rel=1e-5)


def test_default_rank_of_more_tasks_than_dimensions():
    assert singular_task_interference(task_matrices(4, 3, tasks=5)) > 0


def test_unknown_norm():
    with pytest.raises(MethodError, match=r"^norm = 'l1': choose entrywise_l1, induced_l1, frobenius, nuclear\.$"):
        singular_task_interference(task_matrices(4, 3, tasks=2), norm="l1")


def test_no_tasks():
    with pytest.raises(MethodError, match="give at least one"):
        singular_task_interference([])
