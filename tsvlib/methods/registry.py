"""The registry of merge methods: names, parameters, sources."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..errors import MethodError
from ..factors import Factors


class MethodParameters(BaseModel):
    """What every method takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(1.0, allow_inf_nan=False, description="scale of the merged delta")


P = TypeVar("P", bound=MethodParameters)
FromDeltas = Callable[[Sequence[Tensor], Any], Tensor]
FromFactors = Callable[[list[Factors], Any], Tensor]
Rank = Callable[[tuple[int, int], int, Any], int]


def mean(deltas: Sequence[Tensor], parameters: MethodParameters) -> Tensor:
    """The mean of the deltas, as a running mean that holds two of them (Gargiulo et al. 2025, §3)."""
    total = None
    for count, delta in enumerate(deltas, start=1):
        total = delta if total is None else total + (delta - total) / count
    assert total is not None
    return total


@dataclass(frozen=True)
class Method:
    """A registered method. Exactly one of ``from_deltas`` and ``from_factors`` is set."""

    name: str
    parameters: type[MethodParameters]
    source: str
    """Citation: authors, year, section or equation."""
    summary: str
    """One line: what it does to a matrix."""
    others: FromDeltas
    """What it does to parameters that are no matrices."""
    from_deltas: FromDeltas | None = None
    from_factors: FromFactors | None = None
    rank: Rank | None = None
    """Triplets needed of each task: (shape, number of tasks, parameters) -> k, at least 1."""

    @property
    def others_summary(self) -> str:
        """What it does to parameters that are no matrices, in words."""
        return "as matrices" if self.others is self.from_deltas else (self.others.__doc__ or "").split(",")[0]

    def parse(self, values: dict[str, Any]) -> Any:
        """Validated parameters.

        Raises:
            MethodError: naming each wrong parameter, its value and what is allowed.
        """
        try:
            return self.parameters.model_validate(values)
        except ValidationError as error:
            known = ", ".join(self.parameters.model_fields)
            problems = []
            for one in error.errors():
                name = ".".join(str(part) for part in one["loc"])
                if one["type"] == "extra_forbidden":
                    problems.append(f"method {self.name!r} takes no parameter {name!r}; it takes {known}.")
                else:
                    problems.append(f"method {self.name!r}: {name} = {one['input']!r}: {one['msg']}.")
            raise MethodError("\n".join(problems)) from None


_METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    source: str,
    parameters: type[MethodParameters] = MethodParameters,
    rank: Rank | None = None,
    others: FromDeltas | None = mean,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a merge method under ``name``; the first line of its docstring describes it.

    Args:
        name: what users write.
        source: citation of the definition that is followed.
        parameters: what it takes, beside alpha.
        rank: if given, the method is a function of the tasks' factors of this rank, else of their deltas.
        others: what it does to parameters that are no matrices; None: the same as to matrices.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        summary = (function.__doc__ or "").partition("\n")[0]
        functions = {"from_factors": function} if rank else {"from_deltas": function}
        _METHODS[name] = Method(name, parameters, source, summary, others or function, rank=rank, **functions)
        return function

    return register


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(_METHODS)


def get_method(name: str) -> Method:
    """The method of this name.

    Raises:
        MethodError: there is none; lists the known ones and the nearest name.
    """
    if name in _METHODS:
        return _METHODS[name]
    near = difflib.get_close_matches(name, _METHODS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise MethodError(f"unknown method {name!r}.{hint} Known methods: {', '.join(method_names())}.")
