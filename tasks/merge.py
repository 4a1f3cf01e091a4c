"""Singular vectors, merged models and archives, each cached by content."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tsvlib.archive import compress, open_archive
from tsvlib.cache import Cache, default_cache
from tsvlib.checkpoint import open_checkpoint
from tsvlib.factor_cache import FactorCache
from tsvlib.factors import kept_rank
from tsvlib.kept import KeptMatrix, kept_by_archive, kept_by_merging
from tsvlib.key_policy import KeyPolicy
from tsvlib.merging import merge
from tsvlib.parallel import in_parallel
from tsvlib.task_vector import TaskVector

from .blob import Blob, new_file
from .caching import cached_task
from .models import Factorised, Made

NUMERICS = (
    "tsvlib.merging", "tsvlib.methods", "tsvlib.singular_vectors", "tsvlib.lapack", "tsvlib.polar", "tsvlib.factors",
    "tsvlib.key_policy", "tsvlib.batched", "tsvlib.masks", "tsvlib.task_vector", "tsvlib.checkpoint", "tsvlib.tensors",
    "tsvlib.writing", "tsvlib.factor_cache", "tsvlib.merged_cache",
)  # fmt: skip


def made(make: Callable[[Path, Cache | None], object]) -> Made:
    """Have a new file of the store made, with the cache at hand; and take the time and the process's peak memory."""
    start, cache = time.perf_counter(), default_cache()
    blob = new_file(lambda path: make(path, cache))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    work = cache.work() if cache else {}
    seconds = time.perf_counter() - start
    return Made(blob=blob, seconds=seconds, peak_rss_bytes=peak, work=work, flow_run=str(flow_run.id or ""))


@cached_task(*NUMERICS)
def factorise_task(
    name: str,
    base: Blob,
    fine_tuned: Blob,
    tasks: int,
    rank_fraction: float | None,
    key_policy: KeyPolicy | None = None,
) -> Factorised:
    """Take one task vector apart: the top singular triplets of each of its matrices go to the cache."""
    if (cache := default_cache()) is None:
        return Factorised()
    vector = TaskVector(name, open_checkpoint(base.path), open_checkpoint(fine_tuned.path))
    source = FactorCache(cache)
    matrices = [matrix for parameter in vector.base for matrix in vector.matrices(parameter, key_policy or KeyPolicy())]
    ranks = {matrix.key: kept_rank(matrix.shape, tasks, rank_fraction) for matrix in matrices}
    for _ in in_parallel(lambda matrix: source(matrix, ranks[matrix.key], "exact"), matrices):
        pass
    return Factorised(work=cache.work(), flow_run=str(flow_run.id or ""))


@cached_task(*NUMERICS)
def merge_checkpoints(
    base: Blob,
    tasks: dict[str, Blob],
    method: str,
    parameters: dict[str, Any],
    key_policy: KeyPolicy | None = None,
    device: str = "cpu",
) -> Made:
    """Merge fine-tunes into one checkpoint."""
    return made(
        lambda path, cache: merge(
            open_checkpoint(base.path),
            {name: open_checkpoint(blob.path) for name, blob in tasks.items()},
            method,
            out=path,
            key_policy=key_policy,
            cache=cache,
            device=device,
            **parameters,
        )
    )


@cached_task(*NUMERICS, "tsvlib.archive")
def compress_checkpoints(
    base: Blob, tasks: dict[str, Blob], parameters: dict[str, Any], key_policy: KeyPolicy | None = None
) -> Made:
    """Store fine-tunes as one TSV-C archive."""
    return made(
        lambda path, cache: compress(
            open_checkpoint(base.path),
            {name: open_checkpoint(blob.path) for name, blob in tasks.items()},
            out=path,
            key_policy=key_policy,
            cache=cache,
            **parameters,
        )
    )


@task(cache_policy=NO_CACHE)  # what it finds is in the cache of factors already
def measure_merge(
    base: Blob, tasks: dict[str, Blob], rank_fraction: float | None, key_policy: KeyPolicy | None = None
) -> list[KeptMatrix]:
    """What a merge by factors keeps of its tasks, and how much it interferes."""
    if (cache := default_cache()) is None:
        return []
    opened = {name: open_checkpoint(blob.path) for name, blob in tasks.items()}
    return kept_by_merging(open_checkpoint(base.path), opened, cache, rank_fraction, key_policy)


@task(cache_policy=NO_CACHE)
def measure_archive(archive: Blob, base: Blob, tasks: dict[str, Blob]) -> list[KeptMatrix]:
    """What an archive keeps of its tasks."""
    if (cache := default_cache()) is None:
        return []
    opened = {name: open_checkpoint(blob.path) for name, blob in tasks.items()}
    return kept_by_archive(open_archive(archive.path), open_checkpoint(base.path), opened, cache)
