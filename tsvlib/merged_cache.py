"""Merged deltas kept in a cache, before they are scaled: a new alpha costs no more than reading and adding them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from torch import Tensor

from .cache import Cache, Entry
from .factor_cache import CODE
from .methods import Method, MethodParameters
from .notices import warn, withheld_warnings
from .singular_vectors import Mode
from .store import digest_of
from .task_vector import TaskMatrix
from .versions import arithmetic, source_digest

KIND = "merged"
_SCALING = {"alpha", "post", "svc_floor"}  # what is done to the merged delta, after what is kept
_CODE = (*CODE, "tsvlib.polar", "tsvlib.masks", "tsvlib.batched", "tsvlib.methods.registry")


def cached_delta(
    cache: Cache,
    matrices: Sequence[TaskMatrix],
    method: Method,
    parameters: MethodParameters,
    mode: Mode,
    compute: Callable[[], Tensor],
) -> Tensor:
    """What a method makes of the matrices of all tasks, shape (m, n): read if it is there, else computed and kept.

    What the computation warns of is told as well when its result is read.
    """

    def entry() -> Entry:
        with withheld_warnings() as messages:
            delta = compute()
        return Entry({"delta": delta}, {"warnings": messages})

    parts, about = cache.tensors(KIND, merged_key(matrices, method, parameters, mode), entry)
    for message in about["warnings"]:
        warn(message)
    return parts["delta"]


def merged_key(matrices: Sequence[TaskMatrix], method: Method, parameters: MethodParameters, mode: Mode) -> str:
    """Of the matrices' content, in order, with their names, which warnings give; the method and its code; the mode."""
    code = source_digest((*_CODE, *_modules_of(method)))
    given = parameters.model_dump_json(exclude=_SCALING)
    tasks = [f"{matrix.key!r} {matrix.task!r} {matrix.content()}" for matrix in matrices]
    return digest_of("\n".join([KIND, code, arithmetic(), method.name, given, mode, *tasks]))


def _modules_of(method: Method) -> set[str]:
    """The method's own module, and those of other methods that it builds on."""
    found: set[str] = set()
    waiting = {method.function.__module__}
    while waiting:
        name = waiting.pop()
        found.add(name)
        used = {getattr(value, "__module__", None) or "" for value in vars(sys.modules[name]).values()}
        waiting |= {module for module in used if module.startswith("tsvlib.methods.")} - found
    return found
