"""Making archives: fine-tunes become segments, a parameter at a time (Gargiulo et al. 2025, Sec. 4.1 and Eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic import atomic_write
from ..cache import Cache
from ..checkpoint import Checkpoint
from ..compatibility import check_compatible
from ..errors import ArchiveError, MethodError, did_you_mean
from ..factor_cache import FactorCache
from ..factors import FactorSource, factorise, kept_rank
from ..formats.archive import BASE, TASK_PREFIX
from ..key_policy import KeyPolicy
from ..lapack import gram
from ..parallel import in_parallel
from ..progress import Progress
from ..provenance import describe_inputs
from ..singular_vectors import Mode, check_mode
from ..task_vector import TaskMatrix, TaskVector, is_zero
from ..tensors import TensorSpec
from .allocation import Choices, allocate, choices, least_bytes
from .base_table import BaseTable
from .budget import Budget, Weighting, check_weighting, parse_budget
from .coding import FEW_VALUES, ArchiveDtype, Coded, Coding, code_dense, code_factors, get_coding
from .container import Writer, append, remove, room_for
from .reading import Archive
from .segment import Entry, SegmentWriter, TaskSegment, encode_head

ARCHIVE_POLICY = KeyPolicy(conv="matrix", text_projection="matrix")
"""What counts as a matrix by default: convolutions too, which the paper stores whole."""

Ranks = dict[str, int]
"""Key of a matrix -> triplets kept; 0, or not named: stored densely."""

Sensitivities = Mapping[str, Mapping[str, float]]
"""Task -> parameter -> loss for an error of its entries, as :func:`tsvlib.sensitivity.sensitivities` measures it."""


@dataclass(frozen=True)
class Recipe:
    """How tasks are stored."""

    coding: Coding
    key_policy: KeyPolicy
    mode: Mode
    source: FactorSource
    parameters: dict[str, Any]
    """For the header: what was asked for."""

    def matrix_ranks(self, fraction: float | None, units: list[Unit], tasks: int) -> Ranks:
        """The paper's ranks, but 0 where the whole matrix takes no more bytes."""
        ranks = {}
        for unit in units:
            if unit.matrix:
                rank = kept_rank(unit.shape, tasks, fraction)
                ranks[unit.key] = rank if rank <= self.coding.most_triplets(unit.shape) else 0
        return ranks


@dataclass(frozen=True)
class Unit:
    """What becomes one entry: a matrix, or a parameter that is none; not yet read."""

    task: str
    key: str
    shape: tuple[int, ...]
    matrix: TaskMatrix | None
    vector: TaskVector

    def load(self) -> Tensor:
        """The delta, finite."""
        return self.matrix.load() if self.matrix else self.vector.delta(self.key)


def compress(
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    *,
    out: Path,
    rank_fraction: float | None = None,
    budget: str | float | None = None,
    weighting: Weighting = "energy",
    sensitivities: Sensitivities | None = None,
    dtype: ArchiveDtype = "fp16",
    key_policy: KeyPolicy | None = None,
    mode: Mode = "exact",
    cache: Cache | None = None,
    factor_source: FactorSource | None = None,
    progress: Progress | None = None,
) -> Archive:
    """Write an archive of fine-tunes; one parameter of one task is in memory at a time per thread.

    Args:
        base: what the tasks were fine-tuned from; needed again to read the archive.
        tasks: name -> fine-tuned checkpoint; same keys and shapes as the base.
        out: the file to write.
        rank_fraction: share of each matrix's singular triplets to keep, in (0, 1]; 1/T as in the paper by default.
        budget: in place of a rank fraction, bytes of the whole file: a number, or text such as '1.5 MB' or '10%' of
            the fine-tunes' bytes. Triplets are then chosen over all matrices and tasks by energy per byte.
        weighting: what counts under a budget: 'energy' as it is, or relative to that of its 'task' or its 'matrix', or
            weighted for 'accuracy' by the sensitivities.
        sensitivities: task -> parameter -> how much it matters, for that weighting.
        dtype: of the factors and what is stored densely; singular values stay float32.
        key_policy: which parameters count as matrices; by default the paper's, and convolutions and the text
            projection.
        mode: how the factors are computed: exact, fast or reference.
        cache: where factors are kept and found again; the result is the same without one.
        factor_source: where factors come from; by default the cache, or :func:`tsvlib.factors.factorise`.
        progress: called with (task and parameter just done, number done, number of all).

    Raises:
        MismatchError: keys or shapes differ; lists all problems before anything is computed.
        MethodError: a rank fraction outside (0, 1], a budget that is too small, or an unknown dtype.
        NumericalError: NaN or Inf in an input.
    """
    recipe = _recipe(dtype, key_policy, mode, cache, factor_source)
    given = _Given(rank_fraction, budget, weighting, sensitivities)
    vectors = _vectors(base, tasks)
    table = BaseTable.of(base).segment()
    overhead = table.nbytes + room_for(_metadata(base, vectors, table.checksum, {}), _names(vectors))
    ranks = given.ranks(vectors, recipe, overhead, len(vectors))
    return _write(base, vectors, ranks, recipe, out, progress)


def rebuild(
    archive: Archive,
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    *,
    out: Path,
    progress: Progress | None = None,
) -> Archive:
    """The same archive again, from its inputs and the ranks that it tells of.

    Raises:
        MismatchError: as :func:`compress`.
    """
    vectors = _vectors(base, tasks)
    recipes, ranks = {}, {}
    for task in vectors:
        made = archive.task(task)
        about = made.metadata
        recipes[task] = _recipe(
            about["parameters"]["dtype"], KeyPolicy.model_validate(about["key_policy"]), about["mode"], None, None
        )
        recipes[task].parameters.update(about["parameters"])
        ranks[task] = {key: entry.rank for key, entry in made.entries.items()}
    return _write(base, vectors, ranks, recipes, out, progress)


def add(
    archive: Path,
    base: Checkpoint,
    tasks: Mapping[str, Checkpoint],
    *,
    rank_fraction: float | None = None,
    budget: str | float | None = None,
    weighting: Weighting | None = None,
    dtype: ArchiveDtype | None = None,
    cache: Cache | None = None,
    factor_source: FactorSource | None = None,
    progress: Progress | None = None,
) -> Archive:
    """Add tasks to an archive in place; the others are not written anew.

    Args:
        archive: the file. Wherever this is interrupted, it is sound, with or without a task as a whole.
        base: what the archive was made from.
        tasks: name -> fine-tuned checkpoint.
        rank_fraction: as :func:`compress` takes it; by default what the archive's last task was stored with, as for
            all that follows.
        budget: bytes of the tasks added, or share of their checkpoints' bytes.

    Raises:
        ArchiveError: another base, or a task of that name is there already.
        MethodError: as :func:`compress`.
    """
    opened = Archive(archive)
    opened.checked_base(base)
    for task in tasks:
        _check_new(task, opened.tasks, str(archive))
    last = opened.task(opened.tasks[-1]).metadata if opened.tasks else {}
    parameters = last.get("parameters", {})
    policy = KeyPolicy.model_validate(last["key_policy"]) if last else None
    recipe = _recipe(dtype or parameters.get("dtype", "fp16"), policy, last.get("mode", "exact"), cache, factor_source)
    if rank_fraction is None and budget is None:
        rank_fraction = parameters.get("rank_fraction")
        budget = f"{100 * parameters['budget']}%" if "budget" in parameters else None
    given = _Given(rank_fraction, budget, weighting or parameters.get("weighting", "energy"))
    vectors = _vectors(base, tasks)
    ranks = given.ranks(vectors, recipe, 0, len(opened.tasks) + len(tasks))
    for task, segment in _segments(vectors, ranks, dict.fromkeys(vectors, recipe), archive.parent, progress):

        def amend(metadata: dict[str, Any], task: str = task, segment: TaskSegment = segment) -> dict[str, Any]:
            _check_new(task, metadata["tasks"], str(archive))
            about = {"digest": vectors[task].fine_tuned.digest, "header": segment.checksum}
            return metadata | {"tasks": metadata["tasks"] | {task: about}}

        append(archive, TASK_PREFIX + task, segment, amend)
    return Archive(archive)


def remove_task(archive: Path, task: str) -> Archive:
    """Write an archive anew without a task.

    Raises:
        ArchiveError: there is no such task.
    """

    def amend(metadata: dict[str, Any]) -> dict[str, Any]:
        if task not in metadata["tasks"]:
            raise ArchiveError(f"{archive}: no task {task!r}.{did_you_mean(task, sorted(metadata['tasks']))}")
        return metadata | {"tasks": {other: about for other, about in metadata["tasks"].items() if other != task}}

    remove(archive, TASK_PREFIX + task, amend)
    return Archive(archive)


@dataclass(frozen=True)
class _Given:
    """How much was asked to be kept."""

    rank_fraction: float | None
    budget: str | float | None
    weighting: Weighting
    sensitivities: Sensitivities | None = None

    def __post_init__(self) -> None:
        if self.rank_fraction is not None and self.budget is not None:
            raise MethodError("rank_fraction and budget: give one or the other.")
        if self.rank_fraction is not None and not 0 < self.rank_fraction <= 1:
            raise MethodError(f"rank_fraction = {self.rank_fraction}: must be above 0 and at most 1.")
        check_weighting(self.weighting)
        if (self.weighting == "accuracy") != (self.sensitivities is not None):
            raise MethodError(
                "weighting = 'accuracy': goes with sensitivities, measured on validation images of the suite. Choose "
                "another weighting, or give them ('tsv compress --suite' does)."
            )
        if self.budget is not None:
            parse_budget(self.budget, 1)

    def ranks(self, vectors: Mapping[str, TaskVector], recipe: Recipe, overhead: int, tasks: int) -> dict[str, Ranks]:
        """The ranks of every task's matrices, which the recipe then tells of."""
        if self.budget is None:
            recipe.parameters["rank_fraction"] = self.rank_fraction or 1 / tasks
            return {
                task: recipe.matrix_ranks(self.rank_fraction, units(vector, recipe.key_policy), tasks)
                for task, vector in vectors.items()
            }
        budget = parse_budget(self.budget, sum(vector.fine_tuned.nbytes for vector in vectors.values()))
        recipe.parameters.update(budget=budget.share, weighting=self.weighting)
        return ranks_by_budget(vectors, recipe, budget, self.weighting, overhead, self.sensitivities)


def units(vector: TaskVector, key_policy: KeyPolicy) -> list[Unit]:
    """All that a task's delta consists of; integer parameters are the base's."""
    found = []
    for name, spec in vector.base.specs.items():
        if not spec.dtype.is_floating_point or 0 in spec.shape:
            continue
        matrices = vector.matrices(name, key_policy)
        found += [Unit(vector.task, matrix.key, matrix.shape, matrix, vector) for matrix in matrices]
        if not matrices:
            found.append(Unit(vector.task, name, spec.shape, None, vector))
    return found


def ranks_by_budget(
    vectors: Mapping[str, TaskVector],
    recipe: Recipe,
    budget: Budget,
    weighting: Weighting,
    overhead: int,
    sensitivities: Sensitivities | None = None,
) -> dict[str, Ranks]:
    """The ranks of all tasks' matrices that hold the most energy in a budget.

    Args:
        overhead: bytes of the file beside the tasks' segments.

    Raises:
        MethodError: the budget does not suffice for one triplet of each matrix.
    """
    everything = [unit for vector in vectors.values() for unit in units(vector, recipe.key_policy)]
    spectra = [(unit, values) for unit, values in in_parallel(_spectrum, everything) if values[0] > 0]
    weights = _weights(spectra, weighting, sensitivities or {})
    fixed, matrices = overhead, []
    for unit, values in spectra:
        if unit.matrix:
            matrices.append((unit, choices(unit.shape, values, recipe.coding, weights[unit.task, unit.key])))
        else:
            fixed += recipe.coding.dense_bytes(unit.shape)
    fixed += sum(
        _most_header_bytes([unit for unit, _ in spectra if unit.task == task], vector, recipe)
        for task, vector in vectors.items()
    )
    options: list[Choices] = [found for _, found in matrices]
    least = fixed + least_bytes(options)
    if budget.nbytes < least:
        raise MethodError(
            f"budget = {budget.text}: {budget.nbytes:,} bytes are below the minimum of {least:,} "
            f"({100 * least / budget.of:.2f} % of the fine-tunes): headers, vectors and one singular triplet of every "
            "matrix."
        )
    ranks: dict[str, Ranks] = {task: {} for task in vectors}
    for (unit, _), rank in zip(matrices, allocate(options, budget.nbytes - fixed), strict=True):
        ranks[unit.task][unit.key] = rank
    return ranks


def _weights(
    spectra: list[tuple[Unit, np.ndarray]], weighting: Weighting, sensitivities: Sensitivities
) -> dict[tuple[str, str], float]:
    """(task, matrix) -> what its energy counts for."""
    energy = {(unit.task, unit.key): float(np.square(values).sum()) for unit, values in spectra}
    of_task: dict[str, float] = {}
    for (task, _), amount in energy.items():
        of_task[task] = of_task.get(task, 0.0) + amount
    matrices = [(unit.task, unit.key) for unit, _ in spectra if unit.matrix]
    match weighting:
        case "energy":
            return dict.fromkeys(matrices, 1.0)
        case "task":
            return {(task, key): 1 / of_task[task] for task, key in matrices}
        case "matrix":
            return {one: 1 / energy[one] for one in matrices}
        case "accuracy":
            shares = _shares_of_loss(matrices, energy, sensitivities)
            return {(task, key): share * of_task[task] for (task, key), share in shares.items()}


def _shares_of_loss(
    matrices: list[tuple[str, str]], energy: Mapping[tuple[str, str], float], sensitivities: Sensitivities
) -> dict[tuple[str, str], float]:
    """(task, matrix) -> what its energy counts for, where all of a task's counts for one.

    So tasks weigh by their energy: a task that is sure of its answers would be starved by its small sensitivities.
    """
    found: dict[tuple[str, str], float] = {}
    wholes: dict[str, float] = {}
    for task, key in matrices:
        of_task, parameter = sensitivities.get(task, {}), key.partition("[")[0]
        if parameter not in of_task:
            raise MethodError(
                f"weighting = 'accuracy': nothing is known of parameter {parameter!r} of task {task!r}. "
                "Sensitivities have open_clip's names; 'tsv convert' gives those to a checkpoint."
            )
        found[task, key] = max(of_task[parameter], 1e-6 * max(of_task.values()), 1e-30)
        wholes[task] = wholes.get(task, 0.0) + found[task, key] * energy[task, key]
    return {(task, key): sensitivity / wholes[task] for (task, key), sensitivity in found.items()}


def _spectrum(unit: Unit) -> np.ndarray:
    """All singular values, descending; of what is no matrix, its norm."""
    delta = unit.load().double()
    if not unit.matrix or is_zero(delta):
        return np.array([float(torch.linalg.vector_norm(delta))])
    tall = delta if delta.shape[0] >= delta.shape[1] else delta.T
    squares = np.linalg.eigvalsh(gram(tall.contiguous().numpy(), np.float64), UPLO="U")
    return np.sqrt(np.maximum(squares[::-1], 0))


def _most_header_bytes(entries: list[Unit], vector: TaskVector, recipe: Recipe) -> int:
    """Of a segment with these entries, whatever their ranks; and what aligns it."""
    coding, most = recipe.coding, {unit.key: recipe.coding.most_triplets(unit.shape) for unit in entries if unit.matrix}
    scales = sum(3 * max(most.get(unit.key, 1), unit.shape[0]) for unit in entries)
    packed = sum(math.prod(unit.shape) for unit in entries if math.prod(unit.shape) <= FEW_VALUES)
    specs, written = {}, {}
    for unit in entries:
        rank = most.get(unit.key, 0)
        written[unit.key] = Entry(rank, (scales, scales), (packed, packed), 1.234e-38, 1.234e-38, 2**32)
        if unit.matrix:
            specs[f"{unit.key}/U"] = TensorSpec((unit.shape[0], rank), coding.small)
            specs[f"{unit.key}/Vh"] = TensorSpec((rank, unit.shape[1]), coding.small)
    return len(encode_head(specs, scales, packed, coding, written, _task_metadata(vector, recipe))) + 16


def _recipe(
    dtype: str, key_policy: KeyPolicy | None, mode: Mode, cache: Cache | None, factor_source: FactorSource | None
) -> Recipe:
    check_mode(mode)
    coding = get_coding(dtype)
    source = factor_source or (FactorCache(cache) if cache else factorise)
    return Recipe(coding, key_policy or ARCHIVE_POLICY, mode, source, {"dtype": coding.name})


def _vectors(base: Checkpoint, tasks: Mapping[str, Checkpoint]) -> dict[str, TaskVector]:
    if not tasks:
        raise MethodError("nothing to compress: give at least one task.")
    for task in tasks:
        if not task or "/" in task:
            raise MethodError(f"task {task!r}: a name in an archive cannot be empty or hold '/'.")
    check_compatible(base, tasks)
    return {task: TaskVector(task, base, tasks[task]) for task in sorted(tasks)}


def _check_new(task: str, present: Any, where: str) -> None:
    if task in present:
        raise ArchiveError(f"{where}: has a task {task!r} already. Remove it first, or choose another name.")


def _write(
    base: Checkpoint,
    vectors: Mapping[str, TaskVector],
    ranks: Mapping[str, Ranks],
    recipes: Recipe | Mapping[str, Recipe],
    out: Path,
    progress: Progress | None,
) -> Archive:
    of_task = dict.fromkeys(vectors, recipes) if isinstance(recipes, Recipe) else recipes
    table, headers = BaseTable.of(base).segment(), {}
    with atomic_write(out) as file:
        writer = Writer(file, room_for(_metadata(base, vectors, table.checksum, {}), _names(vectors)))
        writer.put(BASE, table)
        for task, segment in _segments(vectors, ranks, of_task, out.parent, progress):
            writer.put(TASK_PREFIX + task, segment)
            headers[task] = segment.checksum
        writer.finish(_metadata(base, vectors, table.checksum, headers))
    return Archive(out)


def _segments(
    vectors: Mapping[str, TaskVector],
    ranks: Mapping[str, Ranks],
    recipes: Mapping[str, Recipe],
    folder: Path,
    progress: Progress | None,
) -> Iterator[tuple[str, TaskSegment]]:
    """Each task's segment, in turn."""
    pending = {task: units(vector, recipes[task].key_policy) for task, vector in vectors.items()}
    total, done = sum(map(len, pending.values())), 0

    def code(unit: Unit) -> Coded | None:
        return _code(unit, ranks[unit.task].get(unit.key, 0), recipes[unit.task])

    coded = in_parallel(code, [unit for found in pending.values() for unit in found])
    for task, found in pending.items():
        writer = SegmentWriter(recipes[task].coding, folder)
        for _ in found:
            unit, entry = next(coded)
            done += 1
            if entry is not None:
                writer.put(unit.key, entry)
            if progress:
                progress(f"{task} {unit.key}", done, total)
        yield task, writer.finish(_task_metadata(vectors[task], recipes[task]))


def _code(unit: Unit, rank: int, recipe: Recipe) -> Coded | None:
    """One entry as it is stored; None for zero, which needs none."""
    delta = unit.load()
    if is_zero(delta):
        return None
    if unit.matrix and rank:
        return code_factors(recipe.source(unit.matrix, rank, recipe.mode), delta, recipe.coding)
    return code_dense(delta, recipe.coding)


def _task_metadata(vector: TaskVector, recipe: Recipe) -> dict[str, Any]:
    described = describe_inputs(vector.base, {vector.task: vector.fine_tuned})
    return {
        "task": vector.task,
        "source": vector.fine_tuned.source,
        "parameters": recipe.parameters,
        "key_policy": recipe.key_policy.model_dump(mode="json"),
        "mode": recipe.mode,
        **{name: described[name] for name in ("versions", "commit") if name in described},
    }


def _metadata(
    base: Checkpoint, vectors: Mapping[str, TaskVector], table: str, headers: Mapping[str, str]
) -> dict[str, Any]:
    """Of the index; before the headers are known, of the same length."""
    return {
        "kind": "archive",
        "base": {"digest": base.digest, "source": base.source, "table": table},
        "tasks": {
            task: {"digest": vector.fine_tuned.digest, "header": headers.get(task, "0" * 16)}
            for task, vector in vectors.items()
        },
    }


def _names(vectors: Mapping[str, TaskVector]) -> list[str]:
    return [BASE, *(TASK_PREFIX + task for task in vectors)]
