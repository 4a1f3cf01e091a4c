"""Singular vectors, merged models and archives, each cached by content."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsvlib.archive import compress
from tsvlib.checkpoint import open_checkpoint
from tsvlib.factor_cache import FactorCache
from tsvlib.factors import kept_rank
from tsvlib.key_policy import KeyPolicy
from tsvlib.merging import merge
from tsvlib.parallel import in_parallel
from tsvlib.task_vector import TaskVector

from .blob import Blob, new_file, store
from .caching import cached_task
from .models import Made

NUMERICS = (
    "tsvlib.merging", "tsvlib.methods", "tsvlib.singular_vectors", "tsvlib.lapack", "tsvlib.polar", "tsvlib.factors",
    "tsvlib.key_policy", "tsvlib.batched", "tsvlib.masks", "tsvlib.task_vector", "tsvlib.checkpoint",
)  # fmt: skip


def _made(write: Callable[[Path], object]) -> Made:
    """Run ``write`` into a new file of the store, and take its time and the process's peak memory."""
    start = time.perf_counter()
    blob = new_file(write)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Made(blob=blob, seconds=time.perf_counter() - start, peak_rss_bytes=peak)


@cached_task(*NUMERICS)
def factorise_task(name: str, base: Blob, fine_tuned: Blob, tasks: int, rank_fraction: float | None) -> dict[str, int]:
    """Take one task vector apart: the top singular triplets of each of its matrices go to the factor cache."""
    vector = TaskVector(name, open_checkpoint(base.path), open_checkpoint(fine_tuned.path))
    cache, policy = FactorCache(store() / "factors"), KeyPolicy()
    matrices = [matrix for parameter in vector.base for matrix in vector.matrices(parameter, policy)]
    ranks = {matrix.key: kept_rank(matrix.shape, tasks, rank_fraction) for matrix in matrices}
    for _ in in_parallel(lambda matrix: cache(matrix, ranks[matrix.key], "exact"), matrices):
        pass
    return ranks


@cached_task(*NUMERICS)
def merge_checkpoints(base: Blob, tasks: dict[str, Blob], method: str, parameters: dict[str, Any]) -> Made:
    """Merge fine-tunes into one checkpoint."""
    return _made(
        lambda path: merge(
            open_checkpoint(base.path),
            {name: open_checkpoint(blob.path) for name, blob in tasks.items()},
            method,
            out=path,
            factor_source=FactorCache(store() / "factors"),
            **parameters,
        )
    )


@cached_task(*NUMERICS, "tsvlib.archive")
def compress_checkpoints(base: Blob, tasks: dict[str, Blob], parameters: dict[str, Any]) -> Made:
    """Store fine-tunes as one TSV-C archive."""
    return _made(
        lambda path: compress(
            open_checkpoint(base.path),
            {name: open_checkpoint(blob.path) for name, blob in tasks.items()},
            out=path,
            factor_source=FactorCache(store() / "factors"),
            **parameters,
        )
    )
