"""The registry of studies: names, the figure of the paper that each repeats, options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import StudyError, did_you_mean
from ..guard import Finding

if TYPE_CHECKING:
    from .subject import Subject


class Options(BaseModel):
    """What a study can be told; none, where it adds nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Outcome:
    """What a study found."""

    table: pd.DataFrame
    """Tidy: a row an observation, accuracies as shares of 1."""
    shown: pd.DataFrame
    """The same to be read: fewer rows, figures as text."""
    figure: Figure
    findings: list[Finding] = field(default_factory=list)
    """What is wrong with the images or the fine-tunes that it was measured on."""


Function = Callable[["Subject", Any], Outcome]


@dataclass(frozen=True)
class Study:
    """A registered study."""

    name: str
    paper: str
    """What it repeats of Gargiulo et al. 2025."""
    options: type[Options]
    function: Function
    on_images: bool
    """Whether it evaluates anything."""

    @property
    def question(self) -> str:
        """One line: what it answers."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def parse(self, values: dict[str, Any]) -> Any:
        """Validated options.

        Raises:
            StudyError: naming each wrong option, its value and what is allowed.
        """
        try:
            return self.options.model_validate(values)
        except ValidationError as error:
            problems = {one["loc"][:2]: self._problem(one) for one in reversed(error.errors())}
            raise StudyError("\n".join(reversed(problems.values()))) from None

    def _problem(self, one: Any) -> str:
        name = str(one["loc"][0]) if one["loc"] else ""
        if one["type"] == "extra_forbidden":
            known = ", ".join(self.options.model_fields) or "none"
            return f"study {self.name!r} takes no {name}; it takes: {known}."
        about = self.options.model_fields[name].description
        return f"study {self.name!r}: {name} = {one['input']!r}: {one['msg']} ({name}: {about})."


_STUDIES: dict[str, Study] = {}


def study(
    name: str, *, paper: str, options: type[Options] = Options, on_images: bool = True
) -> Callable[[Function], Function]:
    """Register a study under ``name``; the first line of its docstring says what it answers.

    Args:
        name: what users write.
        paper: the figure or table that it repeats.
        options: what it can be told.
        on_images: whether it evaluates anything; what does not works on suites without data.
    """

    def register(function: Function) -> Function:
        _STUDIES[name] = Study(name, paper, options, function, on_images)
        return function

    return register


def study_names() -> list[str]:
    """Names of all studies, sorted."""
    return sorted(_STUDIES)


def get_study(name: str) -> Study:
    """The study of this name.

    Raises:
        StudyError: there is none; lists the known ones and the nearest name.
    """
    if name in _STUDIES:
        return _STUDIES[name]
    raise StudyError(f"unknown study {name!r}.{did_you_mean(name, study_names(), 'Studies')}")
