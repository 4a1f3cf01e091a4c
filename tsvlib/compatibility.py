"""Do fine-tunes fit their base? Every problem at once, each naming file, key and remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .checkpoint import Checkpoint
from .names import naming_of
from .tensors import DTYPE_NAMES

_SHOWN = 6  # keys named in a message; a whole model has hundreds
_IMPLAUSIBLE = (
    0.7  # change as a share of the base's norm; unrelated weights differ by about 1.4, fine-tunes by far less
)

_MATTERS = {
    "activation": "which changes every feature without an error",
    "image_size": "so the same image gives other features",
    "mean": "so the same image gives other features",
    "std": "so the same image gives other features",
    "interpolation": "so the same image gives other features",
    "resize_mode": "so the same image gives other features",
}


@dataclass
class Changes:
    """What fine-tuning changed: found by reading every value of base and fine-tune once."""

    relative: float = 0.0
    """Norm of the delta over the norm of the base, over all floating-point tensors."""
    unchanged: set[str] = field(default_factory=set)
    not_finite: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    """Integer tensors that differ from the base's, which a merge takes from the base."""


def structure_problems(base: Checkpoint, task: str, tuned: Checkpoint) -> list[str]:
    """Names, shapes and dtypes that differ from the base's; read from headers alone."""
    where = _where(task, tuned)
    ours, theirs = naming_of(base), naming_of(tuned)
    if ours != theirs and "other" not in (ours, theirs):
        return [
            f"{where}: its parameters are named as in {theirs}, those of the base {base.source} as in {ours}. Convert "
            f"one of them: 'tsv convert {tuned.source} --names {ours} --out FILE'."
        ]
    same = [
        name for name in base.specs.keys() & tuned.specs.keys() if base.specs[name].shape == tuned.specs[name].shape
    ]
    if len(same) < len(base) / 2:
        return [
            f"{where}: another architecture: only {len(same)} of the {len(base)} keys of the base {base.source} have "
            "the same name and shape. Merge only fine-tunes of one base."
        ]
    problems = []
    if missing := sorted(base.specs.keys() - tuned.specs.keys()):
        problems.append(f"{where}: lacks {_named(missing)} of the base {base.source}. Export the whole model.")
    if extra := sorted(tuned.specs.keys() - base.specs.keys()):
        problems.append(
            f"{where}: has {_named(extra)} that the base {base.source} has not. Leave them out of the export."
        )
    for name in sorted(base.specs.keys() & tuned.specs.keys()):
        mine, other = base.specs[name], tuned.specs[name]
        if mine.shape != other.shape:
            problems.append(f"{where}: key {name!r} has shape {other.shape}, the base {base.source} has {mine.shape}.")
        if mine.dtype.is_floating_point != other.dtype.is_floating_point:
            problems.append(
                f"{where}: key {name!r} is {DTYPE_NAMES[other.dtype]}, the base {base.source} has "
                f"{DTYPE_NAMES[mine.dtype]}."
            )
    return problems


def description_problems(base: Checkpoint, about_base: Mapping[str, Any], task: str, tuned: Checkpoint,
                         about_tuned: Mapping[str, Any]) -> list[str]:  # fmt: skip
    """Activation and preprocessing that differ, as far as files beside the weights tell."""
    return [
        f"{_where(task, tuned)}: {name} is {about_tuned[name]}, that of the base {base.source} is {about_base[name]}, "
        f"{consequence}. Use the base that it was fine-tuned from."
        for name, consequence in _MATTERS.items()
        if name in about_base and name in about_tuned and about_base[name] != about_tuned[name]
    ]


def find_changes(base: Checkpoint, tuned: Checkpoint) -> Changes:
    """Compare all values of two checkpoints of one structure, a tensor of each in memory at a time."""
    changes = Changes()
    moved = whole = 0.0
    for name, spec in base.specs.items():
        one, other = base[name], tuned[name]
        if not spec.dtype.is_floating_point:
            if not torch.equal(one, other):
                changes.buffers.append(name)
            continue
        one, other = one.float(), other.float()
        if not torch.isfinite(other).all():
            changes.not_finite.append(name)
            continue
        step = float(torch.linalg.vector_norm(other - one))
        if step == 0:
            changes.unchanged.add(name)
        moved += step**2
        whole += float(torch.linalg.vector_norm(one)) ** 2
    changes.relative = math.sqrt(moved / whole) if whole else 0.0
    return changes


def change_problems(base: Checkpoint, task: str, tuned: Checkpoint, changes: Changes) -> list[str]:
    """Fine-tunes that cannot be what they are said to be."""
    where = _where(task, tuned)
    if changes.not_finite:
        return [f"{where}: {_named(changes.not_finite)} hold NaN or Inf. Take an earlier checkpoint of that training."]
    if len(changes.unchanged) == sum(spec.dtype.is_floating_point for spec in base.specs.values()):
        return [f"{where}: has the base's values throughout, so it adds nothing. Check that it is the fine-tuned file."]
    if changes.relative > _IMPLAUSIBLE:
        return [
            f"{where}: differs from the base {base.source} by {changes.relative:.0%} of the base's norm, so it does "
            "not descend from this base. Find the base that it was fine-tuned from."
        ]
    return []


def change_notes(task: str, tuned: Checkpoint, changes: Changes) -> list[str]:
    """What a merge leaves out of a fine-tune."""
    if not changes.buffers:
        return []
    return [f"{_where(task, tuned)}: {_named(changes.buffers)} are integers and differ; the merge keeps the base's."]


def identical_problems(digests: Mapping[str, str], tuned: Mapping[str, Checkpoint]) -> list[str]:
    """Tasks whose fine-tunes have the same content."""
    first: dict[str, str] = {}
    problems = []
    for task, digest in digests.items():
        if digest in first:
            problems.append(
                f"{_where(task, tuned[task])}: is the same as {tuned[first[digest]].source} (task {first[digest]!r}). "
                "Check the paths; the same fine-tune twice counts twice."
            )
        first.setdefault(digest, task)
    return problems


def _where(task: str, tuned: Checkpoint) -> str:
    return f"{tuned.source} (task {task!r})"


def _named(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the key{'s' if len(names) > 1 else ''} {shown}{more}"
