"""The factors of all tasks, matrix by matrix over a whole model: what interference is measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

from .checkpoint import Checkpoint
from .compatibility import check_compatible
from .factors import Factors, FactorSource, factorise, kept_rank
from .key_policy import KeyPolicy
from .parallel import in_parallel
from .progress import Progress
from .task_vector import TaskMatrix, TaskVector


def factors_by_matrix(
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    *,
    rank_fraction: float | None = None,
    key_policy: KeyPolicy | None = None,
    source: FactorSource = factorise,
    progress: Progress | None = None,
) -> Iterator[list[Factors]]:
    """The factors of every task, for each matrix in which one of them differs from the base; a few at a time.

    Args:
        base: what the tasks were fine-tuned from.
        tasks: name -> fine-tuned checkpoint; same keys and shapes as the base.
        rank_fraction: share of min(m, n) kept of each task; by default 1 / T, as in a merge.
        key_policy: which parameters count as matrices; the paper's by default.
        source: where factors come from, such as a :class:`tsvlib.factor_cache.FactorCache`.
        progress: called with (matrix just done, number done, number of all).

    Yields:
        The factors in the order of the tasks' names, all of one rank.

    Raises:
        MismatchError: keys or shapes differ.
        MethodError: the rank is beyond the shape.
    """
    check_compatible(base, tasks)
    vectors = [TaskVector(task, base, tasks[task]) for task in sorted(tasks)]
    policy = key_policy or KeyPolicy()
    matrices = [
        list(of_all) for name in base for of_all in zip(*(one.matrices(name, policy) for one in vectors), strict=True)
    ]

    def factors(of_all: list[TaskMatrix]) -> list[Factors]:
        rank = kept_rank(of_all[0].shape, len(of_all), rank_fraction)
        return [source(matrix, rank, "exact") for matrix in of_all]

    with closing(in_parallel(factors, matrices)) as found:
        for done, (of_all, one) in enumerate(found, start=1):
            if progress:
                progress(of_all[0].key, done, len(matrices))
            if not all(factor.is_zero for factor in one):
                yield one
