"""params.yaml: what ``dvc repro`` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.rule import Rule
from tsvlib.alpha import check_parameters
from tsvlib.errors import SuiteError
from tsvlib.recipe import Recipe

from .choices import CPU, DeviceName, MethodName, RunnerName, SuiteName, describe_method_parameters
from .runners import DEFAULT

FILE = Path("params.yaml")


class MergeParameters(BaseModel):
    """A method's parameters; alpha and rank_fraction may be ``search``, which chooses them on the validation images.

    Which others there are is the method's to say (docs/methods.md); it checks them before work starts.
    """

    model_config = ConfigDict(extra="allow", frozen=True, json_schema_extra=describe_method_parameters)

    alpha: float | Literal["search"] | None = Field(
        None, description="scale of the merged delta, or 'search' to choose it on the validation images"
    )

    def given(self) -> dict[str, Any]:
        """What is set; the method's own defaults stand for the rest."""
        return self.model_dump(exclude_none=True)

    def checked(self, method: str) -> dict[str, Any]:
        """What is set, known to be what the method takes.

        Raises:
            MethodError: unknown method, or a parameter it does not take; each is named.
        """
        given = self.given()
        check_parameters(method, given)
        return given


METHODS_OWN = MergeParameters()
"""Nothing set: the method's own defaults."""


class Params(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: SuiteName
    runner: RunnerName = DEFAULT
    device: DeviceName = CPU
    lab: Recipe = Recipe()
    merge: dict[MethodName, MergeParameters] = Field(min_length=1)
    compress: dict[str, dict[str, Any]] = {}
    promote: dict[str, Rule] = {}


def load_params(file: Path = FILE) -> Params:
    """Read and check params.yaml.

    Raises:
        SuiteError: the file is missing or an entry is wrong; each is named.
    """
    if not file.is_file():
        raise SuiteError(f"{file}: missing. Run from the project's folder.")
    try:
        return Params.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise SuiteError(f"{file}: not valid YAML: {error}") from error
    except ValidationError as error:
        lines = [f"{file}: {'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}." for e in error.errors()]
        raise SuiteError("\n".join(lines)) from error
