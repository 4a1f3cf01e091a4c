"""A merge in parts, for several processes or machines: divide its parameters, merge each part, join the files.

The parts depend on the shapes and the method alone, not on who works on them, and each parameter is merged as it would
be in one go: so the joined file is the same, to the byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from .checkpoint import Checkpoint, TensorSpec, write_checkpoint
from .errors import MismatchError
from .estimate import MatrixWork
from .key_policy import KeyPolicy
from .methods import Method, MethodParameters

PART = 1e11
"""Cost of a part at least; one to two seconds of one core: far more than handing it over takes."""
_COST_OF_A_VALUE = 250  # reading a value of one task and combining it, in units of the work on singular vectors


def divide(
    specs: Mapping[str, TensorSpec],
    tasks: int,
    method: Method,
    parameters: MethodParameters,
    key_policy: KeyPolicy | None = None,
) -> list[list[str]]:
    """Names of the parameters of each part, the costliest part first.

    Args:
        specs: of the base's tensors.
        tasks: how many fine-tunes are merged.
        method: by which they are.
        parameters: of the method.
        key_policy: which parameters count as matrices; the paper's by default.
    """
    key_policy = key_policy or KeyPolicy()
    parts: list[tuple[float, list[str]]] = []
    filled = PART
    for name, spec in specs.items():
        if filled >= PART:
            parts.append((filled := 0.0, []))
        filled += _cost(name, spec, tasks, method, parameters, key_policy)
        parts[-1] = (filled, [*parts[-1][1], name])
    return [names for _, names in sorted(parts, key=lambda part: -part[0])]


def _cost(
    name: str, spec: TensorSpec, tasks: int, method: Method, parameters: MethodParameters, key_policy: KeyPolicy
) -> float:
    values = tasks * math.prod(spec.shape)
    count = key_policy.count(name, spec.shape)
    if not count or method.rank is None:
        return _COST_OF_A_VALUE * values
    shape = (spec.shape[0] // count, math.prod(spec.shape[1:]))
    work = MatrixWork(shape, method.rank(shape, tasks, parameters), tasks)
    return _COST_OF_A_VALUE * values + count * work.effort


def join(parts: Sequence[Checkpoint], out: Path) -> Checkpoint:
    """Write the parts of one merge as one checkpoint.

    Args:
        parts: as :func:`tsvlib.merge` made them with ``only``.
        out: where the file appears once it is whole.

    Raises:
        MismatchError: the parts were not made by the same merge, or two hold the same parameter.
    """
    first = parts[0]
    problems = [
        f"{part.source}: was made from other inputs, or in another way, than {first.source}."
        for part in parts
        if part.metadata != first.metadata
    ]
    specs: dict[str, TensorSpec] = {}
    for part in parts:
        problems += [f"{part.source}: key {name!r} is in another part too." for name in part if name in specs]
        specs |= part.specs
    if problems:
        raise MismatchError(problems)
    return write_checkpoint(out, specs, ((name, part[name]) for part in parts for name in part), first.metadata)
