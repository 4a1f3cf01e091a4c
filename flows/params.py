"""params.yaml: what ``dvc repro`` runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tsvlib.errors import SuiteError
from tsvlib.finetune import Recipe

FILE = Path("params.yaml")


class MergeParameters(BaseModel):
    """A method's parameters; alpha may be ``search``, which chooses it on the validation images.

    Which others there are is the method's to say (docs/methods.md); it checks them before work starts.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    alpha: float | Literal["search"] | None = None

    def given(self) -> dict[str, Any]:
        """What is set; the method's own defaults stand for the rest."""
        return self.model_dump(exclude_none=True)


class Params(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str
    lab: Recipe = Recipe()
    merge: dict[str, MergeParameters] = Field(min_length=1)
    compress: dict[str, dict[str, Any]] = {}


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
