"""Do fine-tunes fit their base? Every problem at once, each naming file, key and remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .checkpoint import Checkpoint
from .errors import MismatchError
from .names import naming_of
from .tensors import DTYPE_NAMES

_SHOWN = 6  # keys named in a message; a whole model has hundreds
_IMPLAUSIBLE = (
    0.7  # change as a share of the base's norm; unrelated weights differ by about 1.4, fine-tunes by far less
)

_OTHER_IMAGES = "so the same image gives other features"
_OTHER_TEXTS = "so the same text gives other features, and the class vectors do not fit the images"
_MATTERS = {
    "activation": "which changes every feature without an error",
    **dict.fromkeys(("image_size", "mean", "std", "interpolation", "resize_mode"), _OTHER_IMAGES),
    **dict.fromkeys(("vocabulary_size", "context_length", "tokenizer", "vocabulary"), _OTHER_TEXTS),
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


def check_compatible(base: Checkpoint, tasks: Mapping[str, Checkpoint]) -> None:
    """Check that every fine-tune has the base's names, shapes and kinds of dtype, and was meant for the same model.

    Raises:
        MismatchError: with everything that differs.
    """
    problems = []
    for task, tuned in tasks.items():
        problems += structure_problems(base, task, tuned) + description_problems(base, task, tuned)
    if problems:
        raise MismatchError(problems)


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
            f"{where}: has {_named(extra)}, not in the base {base.source}. Export what the base has and no more."
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


def description_problems(base: Checkpoint, task: str, tuned: Checkpoint) -> list[str]:
    """Activation, preprocessing and tokenizer that differ, as far as files beside the weights tell."""
    problems = differing(_where(task, tuned), tuned.about, f"the base {base.source}", base.about)
    return [f"{problem} Use the base that it was fine-tuned from." for problem in problems]


def differing(one: str, about_one: Mapping[str, Any], other: str, about_other: Mapping[str, Any]) -> list[str]:
    """Activation, preprocessing and tokenizer in which two models differ, as far as both tell.

    Args:
        one: how messages name the first.
        about_one: what is known of it, see :func:`tsvlib.sources.about_model`.
        other: how messages name the second.
        about_other: what is known of that.
    """
    return [
        f"{one}: {name.replace('_', ' ')} is {about_one[name]}, that of {other} is {about_other[name]}, {consequence}."
        for name, consequence in _MATTERS.items()
        if name in about_one and name in about_other and about_one[name] != about_other[name]
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
        return [f"{where}: NaN or Inf in {_named(changes.not_finite)}. Take an earlier checkpoint of that training."]
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
    named = _named(changes.buffers)
    return [f"{_where(task, tuned)}: integers that differ from the base's in {named}; the merge keeps the base's."]


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
