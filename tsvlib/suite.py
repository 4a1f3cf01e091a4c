"""Suites: a YAML file that names one base, its fine-tunes, and how each is evaluated.

.. code-block:: yaml

    name: my-suite
    model: models/base                   # an open_clip model name, or a folder with open_clip_config.json
    base: models/base/encoder.safetensors
    tasks:
      pets:
        checkpoint: finetuned/pets.safetensors
        data: data/pets                  # parquet files and classes.json, see tsvlib/images.py
        classes: [cat, dog]              # default: classes.json of the data
        templates: ["a photo of a {}"]   # default: "a photo of {}"

Relative paths start at the suite file's folder; those of the suites that come with the package start at the
current folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from .errors import SuiteError, did_you_mean
from .images import class_names
from .sources import scheme_of

_PACKAGED = Path(__file__).parent / "suites"


class SuiteTask(BaseModel):
    """One fine-tune and the data that it is evaluated on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    data: str
    classes: list[str] | None = None
    templates: list[str] = Field(["a photo of {}"], min_length=1)

    @field_validator("templates")
    @classmethod
    def _has_a_place_for_the_class(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no {{}} for the class name")
        return templates


class Suite(BaseModel):
    """One base, its tasks, and how they are evaluated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    model: str
    base: str
    tasks: dict[str, SuiteTask] = Field(min_length=1)
    _folder: Path = PrivateAttr(default=Path())

    def at(self, folder: str | Path) -> Suite:
        """The same suite with its relative paths starting at a folder."""
        moved = self.model_copy()
        moved._folder = Path(folder)
        return moved

    @property
    def folder(self) -> Path:
        """Where its relative paths start."""
        return self._folder

    def path(self, written: str) -> Path:
        """A path as the suite writes it, made relative to the current folder."""
        return self._folder / written

    @property
    def clip_model(self) -> str | Path:
        """What ``load_clip`` takes: a folder of the suite's, or an open_clip name."""
        folder = self.path(self.model)
        return folder if folder.exists() or "/" in self.model else self.model

    def uri(self, written: str) -> str:
        """A checkpoint as the suite writes it: a path starts at the suite's folder, a URI stands for itself."""
        return str(self.path(written)) if scheme_of(written) == "file" else written

    @property
    def base_uri(self) -> str:
        """Where the base lies."""
        return self.uri(self.base)

    @property
    def checkpoints(self) -> dict[str, str]:
        """Where the fine-tuned checkpoint of every task lies."""
        return {name: self.uri(task.checkpoint) for name, task in self.tasks.items()}

    def task(self, name: str) -> SuiteTask:
        """One task.

        Raises:
            SuiteError: the suite has no such task.
        """
        if name not in self.tasks:
            raise SuiteError(f"suite {self.name!r}: no task {name!r}.{did_you_mean(name, self.tasks)}")
        return self.tasks[name]

    def classes(self, name: str) -> list[str]:
        """Class names of a task, in label order."""
        task = self.task(name)
        return task.classes or class_names(self.path(task.data))


def packaged_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(file.stem for file in _PACKAGED.glob("*.yaml"))


def load_suite(name_or_file: str | Path) -> Suite:
    """Load a suite by its packaged name or from a YAML file.

    Raises:
        SuiteError: no such suite, or a file with an unknown, missing, repeated or wrong entry, each named.
    """
    text = str(name_or_file)
    if text in packaged_suites():
        return _parse((_PACKAGED / f"{text}.yaml").read_text(encoding="utf-8"), text, Path())
    file = Path(text)
    if not file.is_file():
        raise SuiteError(
            f"suite {text!r}: neither a file nor a packaged suite.{did_you_mean(text, packaged_suites())}"
            " A suite of your own is named by the path of its YAML file."
        )
    return _parse(file.read_text(encoding="utf-8"), text, file.parent)


def _parse(text: str, source: str, folder: Path) -> Suite:
    try:
        content = yaml.load(text, Loader=_UniqueKeys)
        suite = Suite.model_validate(content)
    except yaml.YAMLError as error:
        raise SuiteError(f"{source}: not valid YAML: {error}") from error
    except ValidationError as error:
        lines = [f"{source}: {'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']}." for e in error.errors()]
        raise SuiteError("\n".join(lines)) from error
    return suite.at(folder)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice; give each task its own name", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
