"""What is kept of the tasks' matrices, and how much it interferes: figures of every matrix, from factors in the cache.

Merging and compressing leave the factors there; here they are only read. Where they are not there (work without a
cache, or on an accelerator), there are no figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from .archive import Archive
from .cache import Cache, Entry
from .checkpoint import Checkpoint
from .factor_cache import CODE, FactorCache
from .factors import Factors, kept_rank
from .interference import interference_of
from .key_policy import KeyPolicy
from .layers import Place, place_of
from .parallel import in_parallel
from .store import digest_of
from .task_vector import TaskMatrix, TaskVector
from .unchanged import know_digests
from .versions import arithmetic, source_digest

KIND = "kept"
_CODE = (*CODE, "tsvlib.interference", "tsvlib.kept")
_MOST_VALUES = 32  # of a spectrum: more tell a reader no more


class KeptMatrix(BaseModel):
    """One matrix: how much of each task is kept of it, and how much what is kept interferes."""

    model_config = ConfigDict(frozen=True)

    key: str
    """The parameter's name, with ``[i]`` behind it where the parameter holds several matrices."""
    shape: tuple[int, int]
    ranks: dict[str, int]
    """Task -> singular triplets kept; 0: the whole matrix."""
    squared_norms: dict[str, float]
    """Task -> squared norm of the whole matrix."""
    energies: dict[str, float]
    """Task -> share of the squared norm that is kept."""
    spectrum: dict[int, float]
    """i -> s_i / s_1, the mean over the tasks, at some of the i that are kept of every task."""
    sti: float | None
    """Singular task interference of what is kept (Gargiulo et al. 2025, Eq. 6); None where tasks are not summed."""

    @property
    def place(self) -> Place:
        """Where in the model it stands."""
        return place_of(self.key)


class _Wanted(NamedTuple):
    """One matrix of one task, and how many of its triplets are kept; 0: the whole matrix."""

    matrix: TaskMatrix
    rank: int


def kept_by_merging(
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    cache: Cache,
    rank_fraction: float | None = None,
    key_policy: KeyPolicy | None = None,
) -> list[KeptMatrix]:
    """Of a merge by factors in exact mode, a matrix each; empty where its factors are not in the cache.

    Args:
        base: what the tasks were fine-tuned from.
        tasks: name -> fine-tuned checkpoint.
        cache: where the merge has left its factors.
        rank_fraction: share of each matrix's triplets that was kept; 1 / tasks by default.
        key_policy: of the merge.
    """

    def wanted(matrix: TaskMatrix) -> _Wanted:
        return _Wanted(matrix, kept_rank(matrix.shape, len(tasks), rank_fraction))

    found = _matrices(base, tasks, key_policy or KeyPolicy(), cache)
    return _measured([[wanted(matrix) for matrix in same] for same in found], True, cache)


def kept_by_archive(
    archive: Archive, base: Checkpoint, tasks: Mapping[str, Checkpoint], cache: Cache
) -> list[KeptMatrix]:
    """Of an archive, a matrix each; empty where the factors that it was made from are not in the cache.

    Args:
        archive: made in exact mode, with one key policy for all tasks.
        base: what it was made from.
        tasks: name -> fine-tuned checkpoint, those that it was made from.
        cache: where compressing has left its factors.
    """
    entries = {task: archive.task(task).entries for task in tasks}
    policy = KeyPolicy.model_validate(archive.task(next(iter(tasks))).metadata["key_policy"])

    def wanted(matrix: TaskMatrix) -> _Wanted:
        entry = entries[matrix.task].get(matrix.key)  # a delta of zeros has none
        return _Wanted(matrix, entry.rank if entry else 0)

    found = _matrices(base, tasks, policy, cache)
    return _measured([[wanted(matrix) for matrix in same] for same in found], False, cache)


def kept_metrics(kept: Sequence[KeptMatrix]) -> dict[str, float]:
    """``energy``, the share of squared norm kept, and ``sti``, the mean over the matrices, where there are any."""
    if not kept:
        return {}
    whole = sum(one.squared_norms[task] for one in kept for task in one.energies)
    energy = sum(share * one.squared_norms[task] for one in kept for task, share in one.energies.items()) / whole
    interference = [one.sti for one in kept if one.sti is not None]
    return {"energy": energy} | ({"sti": fmean(interference)} if interference else {})


def _matrices(
    base: Checkpoint, tasks: Mapping[str, Checkpoint], key_policy: KeyPolicy, cache: Cache
) -> list[tuple[TaskMatrix, ...]]:
    """Each matrix of all tasks, not yet read."""
    for checkpoint in (base, *tasks.values()):
        know_digests(checkpoint, cache.store)
    vectors = [TaskVector(task, base, tasks[task]) for task in sorted(tasks)]
    return [
        same for name in base for same in zip(*(vector.matrices(name, key_policy) for vector in vectors), strict=True)
    ]


def _measured(wanted: Sequence[Sequence[_Wanted]], summed: bool, cache: Cache) -> list[KeptMatrix]:
    """Every matrix in which a task differs from the base; none at all where the factors of one are not there."""
    found = [one for _, one in in_parallel(lambda same: _kept_matrix(same, summed, cache), wanted)]
    whole = [one for one in found if one is not None]
    return [one for one in whole if any(one.squared_norms.values())] if len(whole) == len(found) else []


def _kept_matrix(wanted: Sequence[_Wanted], summed: bool, cache: Cache) -> KeptMatrix | None:
    """Kept in the cache itself, so that a new alpha costs a look-up; None where factors are not there."""
    content = [f"{one.matrix.task!r} {one.rank} {one.matrix.content()}" for one in wanted]
    key = digest_of("\n".join([KIND, source_digest(_CODE), arithmetic(), wanted[0].matrix.key, str(summed), *content]))
    if entry := cache.find(KIND, key):
        return KeptMatrix.model_validate(entry.about)
    source = FactorCache(cache)
    factors = [source.find(one.matrix, one.rank) if one.rank else _unfactored(one.matrix) for one in wanted]
    present = [one for one in factors if one is not None]
    if len(present) < len(factors):
        return None
    tasks = [one.matrix.task for one in wanted]
    made = KeptMatrix(
        key=wanted[0].matrix.key,
        shape=wanted[0].matrix.shape,
        ranks={one.matrix.task: one.rank for one in wanted},
        squared_norms=dict(zip(tasks, (one.squared_norm for one in present), strict=True)),
        energies={task: one.energy if one.rank else 1.0 for task, one in zip(tasks, present, strict=True)},
        spectrum=_spectrum(present),
        sti=interference_of([(one.U, one.S, one.Vh) for one in present]) if summed else None,
    )
    cache.tensors(KIND, key, lambda: Entry({}, made.model_dump(mode="json")))
    return made


def _unfactored(matrix: TaskMatrix) -> Factors:
    """Stands for a matrix that is kept whole: its norm, no triplets."""
    norm = float(torch.linalg.vector_norm(matrix.load(), dtype=torch.float64))
    m, n = matrix.shape
    nothing = (torch.zeros(m, 0), torch.zeros(0), torch.zeros(0, n))
    return Factors(*nothing, key=matrix.key, task=matrix.task, squared_norm=norm**2)


def _spectrum(factors: Sequence[Factors]) -> dict[int, float]:
    held = [one.S.double() / one.S[0] for one in factors if one.rank and one.S[0] > 0]
    if not held:
        return {}
    most = min(map(len, held))
    places = np.unique(np.linspace(1, most, min(most, _MOST_VALUES)).round().astype(int))
    return {int(place): fmean(float(values[place - 1]) for values in held) for place in places}
