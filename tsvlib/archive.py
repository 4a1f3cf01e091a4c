"""TSV-C: one file that holds every fine-tune of a base as low-rank factors, and gives any of them back.

Layout (version 1): a safetensors file. For task ``t`` and parameter ``p``, matrix ``i`` of the key policy:
``t/p[i]/U`` (m, k), ``t/p[i]/S`` (k, float32) and ``t/p[i]/Vh`` (k, n); what is no matrix, or would be larger as
factors, is the dense delta ``t/p/delta``. A zero delta takes no entry. The header names base, tasks and settings.

Source: Gargiulo et al. 2025, Sec. 4.1 and Eq. 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .cache import Cache
from .checkpoint import Checkpoint, TensorSpec, open_checkpoint, write_checkpoint
from .compatibility import check_compatible
from .errors import ArchiveError, MethodError, did_you_mean
from .factor_cache import FactorCache
from .factors import FactorSource, factorise, kept_rank
from .key_policy import KeyPolicy
from .parallel import in_parallel
from .progress import Progress
from .provenance import describe_inputs
from .singular_vectors import Mode
from .task_vector import TaskVector
from .tensors import FLOAT_DTYPES, FloatDtype, cast

LAYOUT_VERSION = 1


def compress(
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    *,
    out: Path,
    rank_fraction: float | None = None,
    dtype: FloatDtype = "fp16",
    key_policy: KeyPolicy | None = None,
    mode: Mode = "exact",
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Archive:
    """Write an archive of fine-tunes.

    Args:
        base: what the tasks were fine-tuned from; needed again to read the archive.
        tasks: name -> fine-tuned checkpoint; same keys and shapes as the base.
        out: the file to write, entry by entry.
        rank_fraction: share of each matrix's singular triplets to keep, in (0, 1]; 1/T as in the paper by default.
        dtype: of the factors and dense deltas; singular values stay float32.
        cache: where factors are kept and found again; the result is the same without one.
        progress: called with (task and parameter just done, number done, number of all).

    Raises:
        MismatchError: keys or shapes differ; lists all problems before anything is computed.
        MethodError: a rank fraction outside (0, 1], or an unknown dtype.
    """
    if rank_fraction is not None and not 0 < rank_fraction <= 1:
        raise MethodError(f"rank_fraction = {rank_fraction}: must be above 0 and at most 1.")
    if dtype not in FLOAT_DTYPES:
        raise MethodError(f"dtype = {dtype!r}: choose one of {', '.join(FLOAT_DTYPES)}.")
    if not tasks:
        raise MethodError("nothing to compress: give at least one task.")
    for task in tasks:
        if "/" in task:
            raise MethodError(f"task {task!r}: a name in an archive cannot hold '/'.")
    check_compatible(base, tasks)
    key_policy = key_policy or KeyPolicy()
    source = FactorCache(cache) if cache else factorise
    vectors = {task: TaskVector(task, base, tasks[task]) for task in sorted(tasks)}
    names = [name for name, spec in base.specs.items() if spec.dtype.is_floating_point]
    pairs = [(task, name) for task in vectors for name in names]

    def parameter_entries(pair: tuple[str, str]) -> dict[str, Tensor]:
        task, name = pair
        return _entries(vectors[task], name, key_policy, len(tasks), rank_fraction, FLOAT_DTYPES[dtype], mode, source)

    entries: dict[str, Tensor] = {}
    for done, ((task, name), found) in enumerate(in_parallel(parameter_entries, pairs), start=1):
        entries |= found
        if progress:
            progress(f"{task} {name}", done, len(pairs))
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in entries.items()}
    metadata = {
        "kind": "archive",
        "layout": LAYOUT_VERSION,
        "method": "tsv-c",
        "parameters": {"rank_fraction": rank_fraction or 1 / len(tasks), "dtype": dtype},
        "key_policy": key_policy.model_dump(mode="json"),
        "mode": mode,
        **describe_inputs(base, tasks),
    }
    return Archive(write_checkpoint(out, specs, entries.items(), metadata))


def _entries(
    vector: TaskVector,
    name: str,
    key_policy: KeyPolicy,
    tasks: int,
    rank_fraction: float | None,
    dtype: torch.dtype,
    mode: Mode,
    source: FactorSource,
) -> dict[str, Tensor]:
    """The entries of one parameter of one task: none for a zero delta, factors where they are smaller, else dense."""
    delta = vector.delta(name)
    if not delta.any():
        return {}
    matrices = vector.matrices(name, key_policy)
    ranks = [kept_rank(matrix.shape, tasks, rank_fraction) for matrix in matrices]
    factored = sum(k * (sum(matrix.shape) + 1) for k, matrix in zip(ranks, matrices, strict=True))
    if not matrices or factored >= delta.numel():
        return {f"{vector.task}/{name}/delta": cast(delta, dtype, f"{vector.fine_tuned.source}: the delta of {name!r}")}
    entries = {}
    for i, (k, matrix) in enumerate(zip(ranks, matrices, strict=True)):
        factors = source(matrix, k, mode)
        for part, tensor in (("U", factors.U.to(dtype)), ("S", factors.S.float()), ("Vh", factors.Vh.to(dtype))):
            entries[f"{vector.task}/{name}[{i}]/{part}"] = tensor.contiguous()
    return entries


class Archive:
    """An archive opened for reading; reads only the entries of the task that is asked for."""

    def __init__(self, file: Checkpoint) -> None:
        metadata = file.metadata
        if metadata.get("kind") != "archive":
            raise ArchiveError(f"{file.source}: is no TSV-C archive. Make one with 'tsv compress'.")
        if metadata.get("layout") != LAYOUT_VERSION:
            raise ArchiveError(
                f"{file.source}: has layout {metadata.get('layout')!r}; this version reads {LAYOUT_VERSION}. Upgrade."
            )
        self.file = file
        self.metadata: dict[str, Any] = metadata
        self.key_policy = KeyPolicy.model_validate(metadata["key_policy"])

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that it holds."""
        return sorted(self.metadata["tasks"])

    def extract(self, task: str, base: Checkpoint) -> Checkpoint:
        """The model of one task: base + reconstructed delta, each tensor computed when it is read.

        Raises:
            ArchiveError: no such task, or another base than the archive was made from.
        """
        if task not in self.metadata["tasks"]:
            raise ArchiveError(f"{self.file.source}: no task {task!r}.{did_you_mean(task, self.tasks)}")
        if base.digest != self.metadata["base"]["digest"]:
            raise ArchiveError(
                f"{self.file.source}: was made from the base {self.metadata['base']['digest'][:12]}…, "
                f"but {base.source} is {base.digest[:12]}…. Give the base that it was made from."
            )
        return Checkpoint(
            base.specs, partial(self._parameter, task, base), {"kind": "extracted", "task": task}, about=base.about
        )

    def _parameter(self, task: str, base: Checkpoint, name: str) -> Tensor:
        start = base[name]
        delta = self.delta(task, name, start.shape)
        return start if delta is None else (start.float() + delta).to(start.dtype)

    def delta(self, task: str, name: str, shape: torch.Size) -> Tensor | None:
        """The reconstructed delta of one parameter, float32 of this shape; None where it is zero."""
        dense = f"{task}/{name}/delta"
        if dense in self.file:
            return self.file[dense].float()
        matrices = []
        for i in range(self.key_policy.count(name, shape)):
            prefix = f"{task}/{name}[{i}]"
            if f"{prefix}/S" not in self.file:
                return None
            U, S, Vh = (self.file[f"{prefix}/{part}"].float() for part in ("U", "S", "Vh"))
            matrices.append((U * S) @ Vh)
        return self.key_policy.join(matrices, shape) if matrices else None


def open_archive(path: str | Path) -> Archive:
    """Open an archive.

    Raises:
        CheckpointError: the file is missing or truncated.
        ArchiveError: it is no archive, or of a layout that is not known.
    """
    return Archive(open_checkpoint(path))
