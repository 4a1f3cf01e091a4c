"""A byte budget shared out over the matrices of all tasks, so that the bytes hold as much energy as they can.

Each singular triplet of a matrix (m, n) costs the same bytes and holds s² of energy, and s falls; so taking triplets
by energy per byte, the best first, is optimal for every sum of bytes that it passes through (Gargiulo et al. 2025 give
each matrix the same share of its rank instead).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .coding import Coding

Array = np.ndarray


@dataclass(frozen=True)
class Choices:
    """In how many bytes one matrix can be stored, and what energy each choice holds.

    The first choice is one triplet, the k-th is k; the last may be the whole matrix, which is rank 0.
    """

    ranks: Array
    nbytes: Array
    energy: Array


def choices(shape: Sequence[int], singular_values: Array, coding: Coding, weight: float = 1.0) -> Choices:
    """The choices for one matrix, without those that no budget would take.

    Args:
        shape: (m, n).
        singular_values: all of them, descending.
        weight: what its energy counts for.
    """
    squares = weight * np.square(singular_values.astype(np.float64))
    most = max(1, min(coding.most_triplets(shape), int((squares > 0).sum())))
    ranks = np.arange(1, most + 1)
    nbytes = ranks * coding.triplet_bytes(shape)
    energy = np.cumsum(squares)[:most]
    whole, all_energy = coding.dense_bytes(shape), squares.sum()
    if whole <= nbytes[0]:
        return Choices(np.array([0]), np.array([whole]), np.array([all_energy]))
    left = all_energy - energy
    # the whole matrix follows the last triplet that is better value than all that is left
    worthwhile = np.concatenate([[True], squares[1:most] / nbytes[0] >= left[:-1] / (whole - nbytes[:-1])])
    kept = most if worthwhile.all() else int(np.argmin(worthwhile))
    ranks, nbytes, energy = ranks[:kept], nbytes[:kept], energy[:kept]
    if left[kept - 1] > 1e-12 * all_energy:
        ranks, nbytes, energy = np.append(ranks, 0), np.append(nbytes, whole), np.append(energy, all_energy)
    return Choices(ranks, nbytes, energy)


def allocate(matrices: Sequence[Choices], budget: int) -> list[int]:
    """The rank of each matrix (0: whole), of no more bytes than the budget.

    Choices are taken by energy per byte. One that is too large for what is left is passed over, and with it those that
    build on it. More budget never holds less energy: where the choice that was passed over fits, taking it is optimal.

    Args:
        budget: bytes, at least those of all first choices (:func:`least_bytes`), which are taken in any case.
    """
    owners = np.repeat(np.arange(len(matrices)), [len(one.ranks) - 1 for one in matrices])
    costs = np.concatenate([np.diff(one.nbytes) for one in matrices] or [np.empty(0)])
    gains = np.concatenate([np.diff(one.energy) for one in matrices] or [np.empty(0)])
    waiting = np.argsort(-gains / costs, kind="stable")
    taken, left = np.zeros(len(matrices), int), budget - least_bytes(matrices)
    while len(waiting) and costs[waiting].min() <= left:
        spent = np.cumsum(costs[waiting])
        affordable = int(np.searchsorted(spent, left, side="right"))
        taken += np.bincount(owners[waiting[:affordable]], minlength=len(matrices))
        if affordable == len(waiting):
            break
        left -= spent[affordable - 1] if affordable else 0
        too_large = owners[waiting[affordable]]
        waiting = waiting[affordable:][owners[waiting[affordable:]] != too_large]
    return [int(one.ranks[count]) for one, count in zip(matrices, taken, strict=True)]


def least_bytes(matrices: Sequence[Choices]) -> int:
    """Bytes of the first choice of every matrix."""
    return sum(int(one.nbytes[0]) for one in matrices)
