"""Merging: one parameter (:func:`merge_matrix`), or a whole model, streamed (:func:`merge`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import batched
from .cache import Cache
from .checkpoint import Checkpoint, TensorSpec, unwritten, write_checkpoint
from .compatibility import check_compatible
from .errors import MethodError, MismatchError, NumericalError
from .factor_cache import FactorCache
from .factors import Factors, FactorSource, factorise, factorise_batch, gathered, warn_where_undefined
from .key_policy import KeyPolicy
from .merged_cache import cached_delta
from .methods import Method, MethodParameters, get_method
from .methods.svc import calibrated
from .parallel import in_parallel
from .progress import Progress
from .provenance import describe_inputs
from .singular_vectors import Mode, check_mode
from .task_vector import TaskMatrices, TaskMatrix, TaskVector, computing_dtype
from .tensors import FLOAT_DTYPES, FloatDtype, cast
from .unchanged import know_digests


def merge_matrix(deltas: Sequence[Tensor], method: str = "tsv-m", mode: Mode = "exact", **parameters: Any) -> Tensor:
    """The merged delta of one matrix, scaled by alpha: what is to be added to the base.

    Args:
        deltas: T task matrices, each (m, n), floating-point and finite.
        method: a name of :func:`tsvlib.methods.method_names`.
        mode: how the factors of a method that uses them are computed: exact, fast or reference.
        parameters: of the method.

    Returns:
        Shape (m, n), float32 (float64 for float64 deltas).

    Raises:
        MethodError: unknown method, or a parameter it does not take.
        NumericalError: a delta is not floating-point, or holds NaN or Inf.
        MismatchError: the deltas differ in shape.
    """
    chosen = get_method(method)
    parsed = chosen.parse(parameters)
    check_mode(mode)
    if not deltas:
        raise MethodError("nothing to merge: give at least one delta.")
    for delta in deltas:
        if not delta.is_floating_point():
            raise NumericalError(f"the deltas must be floating-point, not {delta.dtype}.")
    shapes = {tuple(delta.shape) for delta in deltas}
    if len(shapes) > 1 or any(delta.ndim != 2 for delta in deltas):
        raise MismatchError([f"the deltas must be matrices of one shape, not {sorted(shapes)}."])
    dtype = computing_dtype(*(delta.dtype for delta in deltas))
    matrices = [TaskMatrix.of(delta.to(dtype), str(index)) for index, delta in enumerate(deltas)]
    return _Merger(chosen, parsed, mode, KeyPolicy(), factorise, deltas[0].device).matrix(matrices)


def merge(
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    method: str = "tsv-m",
    *,
    out: Path | None = None,
    only: Collection[str] | None = None,
    dtype: FloatDtype | None = None,
    key_policy: KeyPolicy | None = None,
    mode: Mode = "exact",
    threads: int | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
    factor_source: FactorSource | None = None,
    device: str = "cpu",
    **parameters: Any,
) -> Checkpoint:
    """Merge fine-tunes of one base: base + alpha · merged delta, parameter by parameter.

    Integer and boolean parameters are the base's. The result does not depend on the order of the tasks, nor on the
    number of threads, to the last bit.

    Args:
        base: what the tasks were fine-tuned from.
        tasks: name -> fine-tuned checkpoint; same keys and shapes as the base.
        method: a name of :func:`tsvlib.methods.method_names`.
        out: write a safetensors file, tensor by tensor; without it, the result is held in memory.
        only: the parameters to merge, where others merge the rest (:mod:`tsvlib.parts`); all by default.
        dtype: of floating-point parameters of the result; by default the base's, or float32 (float64) where a
            fine-tune's is another, so that no delta is rounded away.
        key_policy: which parameters count as matrices; the paper's by default.
        mode: how the factors of a method that uses them are computed: exact, fast or reference.
        threads: parameters merged at a time, each on one core; by default one per available core.
        progress: called with (parameter just merged, number merged, number of all).
        cache: where factors and merged deltas are kept and found again; the result is the same without one.
        factor_source: where factors come from; by default the cache, or :func:`tsvlib.factors.factorise`.
        device: of the matrix work; on any but the CPU, all tasks' matrices of a parameter are factorised at once, in
            exact mode, and neither ``cache`` nor ``factor_source`` is asked.
        parameters: of the method.

    Raises:
        MismatchError: keys or shapes differ; lists all problems before anything is computed.
        MethodError: unknown method or dtype, a parameter it does not take, or a device that is not there.
        NumericalError: NaN or Inf in an input, or a result that the dtype cannot hold; names file, key and task.
    """
    chosen = get_method(method)
    parsed = chosen.parse(parameters)
    check_mode(mode)
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise MethodError(f"dtype = {dtype!r}: choose one of {', '.join(FLOAT_DTYPES)}.")
    on = _checked_device(device, mode)
    if not tasks:
        raise MethodError("nothing to merge: give at least one task.")
    if threads is not None and threads < 1:
        raise MethodError(f"threads = {threads}: must be at least 1.")
    check_compatible(base, tasks)
    key_policy = key_policy or KeyPolicy()
    store = cache.store if cache else None
    for _ in in_parallel(lambda checkpoint: know_digests(checkpoint, store), [base, *tasks.values()], threads):
        pass  # each checkpoint keeps its digest: reading and hashing them all is worth the threads
    vectors = [TaskVector(task, base, tasks[task]) for task in tasks]
    whole = merged_specs(base, tasks, dtype)
    specs = {name: spec for name, spec in whole.items() if only is None or name in only}
    source = factor_source or (FactorCache(cache) if cache else factorise)
    merger = _Merger(chosen, parsed, mode, key_policy, source, on, cache)
    metadata = {
        "kind": "merged",
        "method": method,
        "parameters": parsed.model_dump(mode="json"),
        "mode": mode,
        "dtype": dtype,
        "key_policy": key_policy.model_dump(mode="json"),
        **describe_inputs(base, tasks),
    }

    def result(name: str) -> Tensor:
        return cast(merger.parameter(vectors, name), specs[name].dtype, f"{base.source}: the merged key {name!r}")

    todo = unwritten(out, specs, metadata, like=base)
    precision = batched.full_float32() if batched.on_accelerator(on) else nullcontext()
    with precision, closing(in_parallel(result, todo, threads)) as results:  # ends its threads where writing fails
        merged = _reported(results, len(todo), progress)
        if out is not None:
            return write_checkpoint(out, specs, merged, metadata, like=base)
        return Checkpoint.from_tensors(dict(merged), metadata)


@dataclass(frozen=True)
class _Merger:
    """How one parameter is merged: what :func:`merge` was asked for, validated."""

    method: Method
    parameters: MethodParameters
    mode: Mode
    key_policy: KeyPolicy
    source: FactorSource
    device: torch.device
    cache: Cache | None = None

    def parameter(self, vectors: list[TaskVector], name: str) -> Tensor:
        """The merged parameter of this name.

        Tasks are taken in the order of its own content, so that a change elsewhere in a fine-tune changes nothing here.
        """
        base = vectors[0].base[name]
        if not base.is_floating_point():
            return base
        vectors = sorted(vectors, key=lambda vector: (vector.fine_tuned.tensor_digest(name), vector.task))
        of_each_task = [vector.matrices(name, self.key_policy) for vector in vectors]
        if of_each_task[0]:
            with batched.own_stream(self.device):
                merged = [self.matrix(list(matrices)).cpu() for matrices in zip(*of_each_task, strict=True)]
            delta = self.key_policy.join(merged, base.shape)
        else:
            whole = [
                TaskMatrix(name, vector.task, (0, 0), partial(vector.delta, name), partial(vector.content, name))
                for vector in vectors
            ]
            delta = self.parameters.alpha * self.method.others(TaskMatrices(whole), self.parameters)
        return base.to(delta.dtype) + delta

    def matrix(self, matrices: list[TaskMatrix]) -> Tensor:
        """The merged delta of one matrix of all tasks, scaled by alpha."""
        unscaled = partial(self._unscaled, matrices)
        if self.cache is None or batched.on_accelerator(self.device):
            merged = unscaled()
        else:
            merged = cached_delta(self.cache, matrices, self.method, self.parameters, self.mode, unscaled)
        merged = self.parameters.alpha * merged
        if self.parameters.post == "svc":
            merged = calibrated(merged, TaskMatrices(matrices, self.device), self.parameters.svc_floor)
        return merged

    def _unscaled(self, matrices: list[TaskMatrix]) -> Tensor:
        if self.method.rank is None:
            return self.method.function(TaskMatrices(matrices, self.device), self.parameters)
        k = self.method.rank(matrices[0].shape, len(matrices), self.parameters)
        factors = self._factors(matrices, k)
        warn_where_undefined(factors)
        return self.method.function(factors, self.parameters)

    def _factors(self, matrices: list[TaskMatrix], k: int) -> list[Factors]:
        if batched.on_accelerator(self.device):
            return factorise_batch(matrices, k, self.device)
        return gathered((self.source(matrix, k, self.mode) for matrix in matrices), len(matrices))


def merged_specs(
    base: Checkpoint, tasks: Mapping[str, Checkpoint], dtype: FloatDtype | None = None
) -> dict[str, TensorSpec]:
    """Shape and dtype of every parameter of a merge; ``dtype`` as :func:`merge` takes it."""
    return {name: _merged_spec(name, base, tasks).as_float(dtype) for name in base}


def _merged_spec(name: str, base: Checkpoint, tasks: Mapping[str, Checkpoint]) -> TensorSpec:
    """The dtype of base and fine-tunes; float32 (float64) where they differ; integers and booleans are the base's."""
    dtype = base.specs[name].dtype
    for fine_tuned in tasks.values():
        other = fine_tuned.specs[name].dtype
        if dtype.is_floating_point and dtype != other:
            dtype = torch.float64 if torch.float64 in (dtype, other) else torch.float32
    return TensorSpec(base.specs[name].shape, dtype)


def _checked_device(name: str, mode: Mode) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MethodError(f"device = {name!r}: not available here ({str(error).splitlines()[0]}).") from error
    if batched.on_accelerator(device) and mode != "exact":
        raise MethodError(f"device = {name!r}: takes exact mode only, not {mode!r}.")
    return device


def _reported(
    results: Iterator[tuple[str, Tensor]], total: int, progress: Progress | None
) -> Iterator[tuple[str, Tensor]]:
    for done, (name, tensor) in enumerate(results, start=1):
        yield name, tensor
        if progress:
            progress(name, done, total)
