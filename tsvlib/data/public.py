"""The public data sets of the paper's suites, by the name that a suite's task gives as ``dataset``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..errors import SuiteError, did_you_mean

_FILE = Path(__file__).with_name("public.yaml")


@cache
def _described() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(_FILE.read_text(encoding="utf-8"))["datasets"]


def public_datasets() -> dict[str, str]:
    """Name -> title."""
    return {name: described["title"] for name, described in _described().items()}


def describe_public(name: str) -> dict[str, Any]:
    """What a suite's task takes over: data, templates, and classes where they are not the data set's own.

    Raises:
        SuiteError: there is none of this name.
    """
    if name not in _described():
        raise SuiteError(f"dataset {name!r}: is not known.{did_you_mean(name, _described())}")
    return {field: value for field, value in _described()[name].items() if field != "title"}
