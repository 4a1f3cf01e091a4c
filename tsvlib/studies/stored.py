"""Ways of keeping every fine-tune, each beside the base: archives, and the masks that they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ..archive import compress
from ..archive.coding import ArchiveDtype
from ..candidate import Candidate, from_file
from ..errors import MethodError, did_you_mean
from ..masked import Masked, magnitude_masked, tall_masked
from ..methods import get_method, method_names
from ..methods.registry import parse_values
from ..store import digest_of
from ..versions import source_digest

if TYPE_CHECKING:
    from .subject import Subject

TSV_C, TALL_MASK, MAGNITUDE_MASK = "tsv-c", "tall-mask", "magnitude-mask"

Make = Callable[["Subject", str, Any], Candidate]


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Archiving(_Parameters):
    """As ``tsv compress`` takes them."""

    rank_fraction: float | None = Field(None, gt=0, le=1, description="share of min(m, n) kept of each task")
    dtype: ArchiveDtype = "fp16"


class TallMasking(_Parameters):
    """Of :func:`tsvlib.masks.tall_masks`."""

    threshold: float = Field(0.4, gt=0, description="least size of a task's value, relative to those of the others")


class MagnitudeMasking(_Parameters):
    """Of :func:`tsvlib.masks.magnitude_mask`."""

    density: float = Field(0.1, gt=0, le=1, description="share of the values that is kept")


@dataclass(frozen=True)
class Stored:
    """A way of keeping every fine-tune; a merge method, by contrast, makes one model of all."""

    name: str
    parameters: type[BaseModel]
    make: Make

    def parse(self, values: dict[str, Any]) -> Any:
        """Validated parameters.

        Raises:
            MethodError: naming each wrong parameter, its value and what is allowed.
        """
        return parse_values(self.name, self.parameters, values)


_STORED: dict[str, Stored] = {}


def stored(name: str, parameters: type[BaseModel]) -> Callable[[Make], Make]:
    """Register a way of keeping every fine-tune."""

    def register(make: Make) -> Make:
        _STORED[name] = Stored(name, parameters, make)
        return make

    return register


def is_stored(name: str) -> bool:
    """Whether a method keeps every fine-tune."""
    return name in _STORED


def get_stored(name: str) -> Stored:
    """The way of keeping fine-tunes of this name."""
    return _STORED[name]


def parameters_of(method: str) -> list[str]:
    """What a method takes, whether it merges or keeps every fine-tune.

    Raises:
        MethodError: there is no such method.
    """
    if is_stored(method):
        return list(get_stored(method).parameters.model_fields)
    if method not in method_names():
        raise MethodError(
            f"unknown method {method!r}.{did_you_mean(method, [*method_names(), *_STORED], 'Known methods')}"
        )
    return list(get_method(method).parameters.model_fields)


@stored(TSV_C, Archiving)
def archived(subject: Subject, name: str, parameters: Archiving) -> Candidate:
    """A TSV-C archive, written below the subject's folder."""
    file = subject.folder / f"{digest_of(name)}-{len(subject.tasks)}.safetensors"
    if not file.exists():
        compress(
            subject.base,
            subject.tasks,
            out=file,
            cache=subject.cache,
            key_policy=subject.suite.key_policy,
            **parameters.model_dump(),
        )
    return from_file(file, subject.suite, name)


@stored(TALL_MASK, TallMasking)
def tall(subject: Subject, name: str, parameters: TallMasking) -> Candidate:
    """TALL masks over the sum of all task vectors."""
    return _of_masked(subject, name, tall_masked(subject.base, subject.tasks, parameters.threshold))


@stored(MAGNITUDE_MASK, MagnitudeMasking)
def magnitude(subject: Subject, name: str, parameters: MagnitudeMasking) -> Candidate:
    """The largest values of each task vector."""
    return _of_masked(subject, name, magnitude_masked(subject.base, subject.tasks, parameters.density))


def _of_masked(subject: Subject, name: str, masked: Masked) -> Candidate:
    code = source_digest(("tsvlib.masked", "tsvlib.masks", "tsvlib.task_vector"))
    content = digest_of(f"{name} {code} {subject.digest}")
    return Candidate(name, masked.extract, lambda task: f"{content} {task}", masked.nbytes, content)
