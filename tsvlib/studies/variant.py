"""Variants: a way of making or storing one model, and its parameters, as users write it: ``ties,density=0.3``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..alpha import check_parameters
from ..errors import StudyError
from .stored import get_stored, is_stored, parameters_of


@dataclass(frozen=True)
class Variant:
    """A merge method or a way of storing every fine-tune, with some of its parameters."""

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Method and parameters, as users write them."""
        return ",".join([self.method, *(f"{key}={_written(value)}" for key, value in self.parameters.items())])

    def given(self, **parameters: Any) -> Variant:
        """The same with further parameters; those it has stay."""
        return Variant(self.method, parameters | self.parameters)

    def takes(self, parameter: str) -> bool:
        """Whether its method has such a parameter."""
        return parameter in parameters_of(self.method)


def parse_variants(written: Iterable[str]) -> list[Variant]:
    """Variants from what users write.

    Raises:
        StudyError: a part that is no NAME=VALUE, or a variant given twice.
        MethodError: an unknown method, or a parameter that it does not take.
    """
    variants = [_parse(one) for one in written]
    names = [one.name for one in variants]
    if again := {name for name in names if names.count(name) > 1}:
        raise StudyError(f"method {sorted(again)[0]!r}: given twice; name each once.")
    return variants


def parse_swept(written: Iterable[str], parameter: str) -> list[Variant]:
    """Variants whose parameter a study varies: each must take it, and none set it.

    Raises:
        StudyError: one does not, or does.
    """
    variants = parse_variants(written)
    for one in variants:
        if not one.takes(parameter):
            raise StudyError(f"method {one.name!r}: takes no {parameter}, which this study varies; leave it out.")
        if parameter in one.parameters:
            raise StudyError(f"method {one.name!r}: this study varies {parameter} itself; leave it out.")
    return variants


def _parse(written: str) -> Variant:
    method, *settings = written.split(",")
    parameters_of(method)
    parameters = {}
    for one in settings:
        name, separator, value = one.partition("=")
        if not (name and separator and value):
            raise StudyError(f"method {written!r}: write it as NAME or NAME,PARAMETER=VALUE,….")
        parameters[name] = yaml.safe_load(value)
    if is_stored(method):
        get_stored(method).parse(parameters)
    else:
        check_parameters(method, parameters)
    return Variant(method, parameters)


def _written(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
