"""The registry of merge methods: names, parameters, sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..errors import MethodError, did_you_mean


class MethodParameters(BaseModel):
    """What every method takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float = Field(1.0, allow_inf_nan=False, description="scale of the merged delta")
    post: Literal["svc"] | None = Field(None, description="post-step on matrices: singular value calibration")
    svc_floor: float | None = Field(
        None, gt=0, le=1, description="least share of a task that svc assumes in a direction; by default 1 / tasks"
    )

    @property
    def is_linear_in_alpha(self) -> bool:
        """Whether the merged delta is alpha times that of alpha 1."""
        return self.post is None


Function = Callable[..., Tensor]
Rank = Callable[[tuple[int, int], int, Any], int]


def mean(deltas: Sequence[Tensor], parameters: MethodParameters) -> Tensor:
    """Mean of the deltas.

    As a running mean, which holds two of them (Gargiulo et al. 2025, §3).
    """
    remaining = iter(deltas)
    total = next(remaining)
    for count, delta in enumerate(remaining, start=2):
        total = total + (delta - total) / count
    return total


@dataclass(frozen=True)
class Method:
    """A registered method."""

    name: str
    source: str
    """Citation: authors, year, section or equation."""
    parameters: type[MethodParameters]
    function: Function
    """(deltas, parameters) -> merged delta before alpha; (factors, parameters) -> the same, if ``rank`` is set."""
    rank: Rank | None
    """Triplets needed of each task: (shape, number of tasks, parameters) -> k, at least 1."""
    others: Function
    """(deltas, parameters) -> merged delta of a parameter that is no matrix."""

    @property
    def summary(self) -> str:
        """One line: what it does to a matrix."""
        return _first_line(self.function)

    @property
    def others_summary(self) -> str:
        """One line: what it does to parameters that are no matrices."""
        return "The same." if self.others is self.function else _first_line(self.others)

    def parse(self, values: dict[str, Any]) -> Any:
        """Validated parameters.

        Raises:
            MethodError: naming each wrong parameter, its value and what is allowed.
        """
        return parse_values(self.name, self.parameters, values)


def parse_values(method: str, parameters: type[BaseModel], values: dict[str, Any]) -> Any:
    """Parameters of a method, validated by their model.

    Raises:
        MethodError: naming each wrong parameter, its value and what is allowed.
    """
    try:
        return parameters.model_validate(values)
    except ValidationError as error:
        known = ", ".join(parameters.model_fields)
        problems = []
        for one in error.errors():
            name = ".".join(str(part) for part in one["loc"])
            if one["type"] == "extra_forbidden":
                problems.append(f"method {method!r} takes no parameter {name!r}; it takes {known}.")
            else:
                problems.append(f"method {method!r}: {name} = {one['input']!r}: {one['msg']}.")
        raise MethodError("\n".join(problems)) from None


_METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    source: str,
    parameters: type[MethodParameters] = MethodParameters,
    rank: Rank | None = None,
    others: Function | None = mean,
) -> Callable[[Function], Function]:
    """Register a merge method under ``name``; the first line of its docstring describes it.

    Args:
        name: what users write.
        source: citation of the definition that is followed.
        parameters: what it takes, beside what every method takes.
        rank: if given, the method is a function of the tasks' factors of this rank, else of their deltas.
        others: what it does to parameters that are no matrices; None: the same as to matrices.
    """

    def register(function: Function) -> Function:
        _METHODS[name] = Method(name, source, parameters, function, rank, others or function)
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
    raise MethodError(f"unknown method {name!r}.{did_you_mean(name, method_names(), 'Known methods')}")


def _first_line(function: Function) -> str:
    return (function.__doc__ or "").partition("\n")[0]
