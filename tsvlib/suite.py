"""Suites: a YAML file that names one base, its fine-tunes, and how each is evaluated.

.. code-block:: yaml

    name: my-suite
    model: models/base                   # an open_clip model name, or a folder with open_clip_config.json
    base: models/base/encoder.safetensors
    tasks:
      pets:
        checkpoint: finetuned/pets.safetensors
        data: data/pets                  # a folder, or hf://datasets/ORGANISATION/NAME
        classes: [cat, dog]              # default: those that the data carries
        templates: ["a photo of a {}"]   # default: "a photo of {}"
      mnist:
        checkpoint: finetuned/mnist.safetensors
        dataset: mnist                   # a public data set that is known by name

Relative paths start at the suite file's folder; those of the suites that come with the package start at the
current folder. Every entry: docs/suites.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from .data import DataDescription
from .data.public import describe_public
from .errors import SuiteError, did_you_mean
from .images import LabelledImages, class_names, load_images
from .key_policy import KeyPolicy
from .sources import scheme_of

_PACKAGED = Path(__file__).parent / "suites"


class SuiteTask(BaseModel):
    """One fine-tune and the data that it is evaluated on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    dataset: str | None = None
    """A public data set by name: what it says of data, classes and templates holds unless the task says otherwise."""
    data: DataDescription
    classes: list[str] | dict[str, str] | None = None
    """In label order; or what the data calls a class -> what prompts call it."""
    templates: list[str] = Field(["a photo of {}"], min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _of_a_public_data_set(cls, written: Any) -> Any:
        if isinstance(written, dict) and isinstance(name := written.get("dataset"), str):
            try:
                return describe_public(name) | written
            except SuiteError as error:
                raise ValueError(str(error)) from error
        return written

    @field_validator("classes", mode="before")
    @classmethod
    def _in_words(cls, classes: Any) -> Any:
        """YAML reads the name 7 as a number and yes as a truth value; the latter is better told than guessed."""
        if isinstance(classes, dict):
            return {str(key): value for key, value in classes.items()}
        if isinstance(classes, list):
            return [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in classes]
        return classes

    @field_validator("templates")
    @classmethod
    def _has_a_place_for_the_class(cls, templates: list[str]) -> list[str]:
        for template in templates:
            try:
                filled = template.format("\0")
            except (IndexError, KeyError, ValueError) as error:
                raise ValueError(f"template {template!r} must have one {{}} for the class name and no other") from error
            if "\0" not in filled:
                raise ValueError(f"template {template!r} has no {{}} for the class name")
        return templates


class Suite(BaseModel):
    """One base, its tasks, and how they are evaluated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    family: str = ""
    """Who fine-tuned the checkpoints; figures of different families are not comparable."""
    model: str
    weights: str | None = None
    """The whole model, whose text tower makes the heads; by default ``model.safetensors`` of the model's folder."""
    base: str
    key_policy: KeyPolicy | None = None
    """Which parameters count as matrices; by default the paper's for a merge, an archive's own for an archive."""
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

    @property
    def clip_weights(self) -> str | None:
        """Where the whole model lies, for ``load_clip``; None if in its folder."""
        return self.uri(self.weights) if self.weights else None

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

    def data(self, name: str) -> DataDescription:
        """Where a task's images lie."""
        return self.task(name).data.at(self._folder)

    def images(self, name: str, split: str) -> LabelledImages:
        """The images of one task and split.

        Raises:
            DataError: they are missing, or a label has no class.
        """
        return load_images(self.data(name), split, self.task(name).classes)

    def classes(self, name: str) -> list[str]:
        """Class names of a task, in label order.

        Raises:
            DataError: neither the suite nor the data names them.
        """
        return class_names(self.data(name), self.task(name).classes)


def packaged_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(file.stem for file in _PACKAGED.glob("*.yaml"))


def load_suite(name_or_file: str | Path) -> Suite:
    """Load a suite by its packaged name or from a YAML file.

    Raises:
        SuiteError: no such suite, or a file with an unknown, missing, repeated or wrong entry, each named.
    """
    text = str(name_or_file)
    packaged = text in packaged_suites()
    file = _packaged(text) if packaged else Path(text)
    if not file.is_file():
        raise SuiteError(
            f"suite {text!r}: neither a file nor a packaged suite.{did_you_mean(text, packaged_suites())}"
            " A suite of your own is named by the path of its YAML file."
        )
    try:
        suite = Suite.model_validate(_content(file, text))
    except ValidationError as error:
        lines = [f"{text}: {'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']}." for e in error.errors()]
        raise SuiteError("\n".join(lines)) from error
    return suite.at(Path() if packaged else file.parent)


def _packaged(name: str) -> Path:
    return _PACKAGED / f"{name}.yaml"


def _content(file: Path, source: str, above: tuple[Path, ...] = ()) -> Any:
    """What a file says, on top of the suite that it extends."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SuiteError(f"{source}: not valid YAML: {error}") from error
    except OSError as error:
        raise SuiteError(f"{source}: cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict) or "extends" not in content:
        return content
    name = str(content.pop("extends"))
    extended = file.parent / name if name.endswith((".yaml", ".yml")) else _packaged(name)
    if extended in (file, *above):
        raise SuiteError(f"{source}: extends itself by way of {name!r}.")
    if not extended.is_file() or extended.parent not in (file.parent, _PACKAGED):
        raise SuiteError(
            f"{source}: extends {name!r}, which is neither a packaged suite nor a file of the same folder."
            f"{did_you_mean(name, packaged_suites())}"
        )
    below = _content(extended, name, (*above, file))
    tasks = (below.get("tasks") or {}) | (content.get("tasks") or {})
    return below | content | {"tasks": {task: entry for task, entry in tasks.items() if entry is not None}}


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
