"""The grid of a sweep: methods × alphas × ranks × subsets of tasks, checked whole before any work."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tsvlib.alpha import RANK
from tsvlib.errors import SuiteError
from tsvlib.methods import get_method
from tsvlib.suite import Suite, load_suite

from .choices import MethodName
from .merge import Wanted

Alpha = Annotated[float, Field(allow_inf_nan=False)]


class Grid(BaseModel):
    """Candidates: every combination of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[MethodName] = Field(["tsv-m"], min_length=1)
    alphas: list[Alpha] = Field([1.0], min_length=1, description="scales of the merged delta")
    rank_fractions: list[float | None] = Field(
        [None], min_length=1, description="share of min(m, n) kept of each task, for methods that take it"
    )
    task_subsets: list[list[str]] = Field(
        [[]], min_length=1, description="which tasks are merged; an empty list stands for all"
    )

    @field_validator("methods", "alphas", "rank_fractions", "task_subsets")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        keys = [sorted(value) if isinstance(value, list) else value for value in values]
        if repeated := [value for place, value in enumerate(keys) if value in keys[:place]]:
            raise ValueError(f"{repeated[0]!r} stands twice")
        if repeated := [subset for subset in keys if isinstance(subset, list) and len(set(subset)) < len(subset)]:
            raise ValueError(f"{repeated[0]!r} names a task twice")
        return values

    @model_validator(mode="after")
    def _ranks_are_of_use(self) -> Grid:
        if self.rank_fractions != [None] and not any(map(_takes_rank, self.methods)):
            raise ValueError(f"rank_fractions: none of {', '.join(self.methods)} takes a rank; leave it out")
        return self

    def candidates(self) -> list[Wanted]:
        """(method, parameters) of each, known to be valid.

        Raises:
            MethodError: a value that a method does not take.
        """
        found: list[Wanted] = []
        for method in self.methods:
            for rank in self.rank_fractions if _takes_rank(method) else [None]:
                for alpha in self.alphas:
                    wanted = {"alpha": alpha} | ({RANK: rank} if rank is not None else {})
                    get_method(method).parse(wanted)
                    found.append((method, wanted))
        return found

    def subsets(self, suite: Suite) -> list[Suite]:
        """The suite with the tasks of each subset alone.

        Raises:
            SuiteError: the suite has no such task.
        """
        return [only(suite, names or list(suite.tasks)) for names in self.task_subsets]


def _takes_rank(method: str) -> bool:
    return RANK in get_method(method).parameters.model_fields


def only(suite: Suite, names: Iterable[str]) -> Suite:
    """A suite with some of its tasks.

    Raises:
        SuiteError: it has no such task.
    """
    tasks = {name: suite.task(name) for name in names}
    return suite.model_copy(update={"tasks": tasks}).at(suite.folder)


def name_of(wanted: Wanted) -> str:
    """Method and parameters."""
    method, parameters = wanted
    return " ".join([method, *(f"{key}={repr(value).removesuffix('.0')}" for key, value in parameters.items())])


def load_grid(file: Path) -> tuple[str, Grid]:
    """The suite and the grid of a YAML file, known to be possible; a suite's path starts at the file's folder.

    Raises:
        SuiteError: the file or the suite is missing, or an entry is wrong; each is named.
        MethodError: a value that a method does not take.
    """
    if not file.is_file():
        raise SuiteError(f"{file}: no such file. It names a suite, and what to sweep over.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        suite, grid = str(content.pop("suite")), Grid.model_validate(content)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise SuiteError(
            f"{file}: is no sweep ({error!r}): write 'suite: NAME' and lists such as 'methods'."
        ) from error
    except ValidationError as error:
        lines = [f"{file}: {'.'.join(map(str, e['loc'])) or 'grid'}: {e['msg']}." for e in error.errors()]
        raise SuiteError("\n".join(lines)) from error
    beside = file.parent / suite
    suite = str(beside) if beside.is_file() else suite
    grid.candidates()
    grid.subsets(load_suite(suite))
    return suite, grid
