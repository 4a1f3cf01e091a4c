"""Prefixes that wrappers around a model leave on the names of its parameters."""

from __future__ import annotations

from collections.abc import Iterable


def without_wrapping(names: Iterable[str], nested: bool = False) -> dict[str, str]:
    """Each name in a file -> its name in the model itself.

    ``module.`` (data-parallel training) and ``_orig_mod.`` (a compiled module) say nothing about the model and are
    taken off. ``model.`` is part of many models' own names, so it is taken off only where it wraps a CLIP model, as
    in the ``ImageEncoder`` of task-arithmetic code, or the file is a training checkpoint that nests its weights.
    """
    names = list(names)
    prefix = ""
    while names and (found := _wrapper([name.removeprefix(prefix) for name in names], nested)):
        prefix += found
    return {name: name.removeprefix(prefix) for name in names}


def _wrapper(names: list[str], nested: bool) -> str | None:
    wrapped_clip = any(name.startswith("model.visual.") for name in names)
    candidates = ["module.", "_orig_mod.", *(["model."] if nested or wrapped_clip else [])]
    return next((prefix for prefix in candidates if all(name.startswith(prefix) for name in names)), None)
