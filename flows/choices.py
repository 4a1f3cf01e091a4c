"""Types of flow parameters that tell Prefect's form, and its check of a trigger, what can be chosen."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from tsvlib.alpha import RANK, SEARCH
from tsvlib.methods import get_method, method_names
from tsvlib.suite import packaged_suites

from .runners import RUNNERS, make_runner


def _known_method(name: str) -> str:
    get_method(name)
    return name


def _usable_runner(setting: str) -> str:
    make_runner(setting)
    return setting


MethodName = Annotated[
    str, AfterValidator(_known_method), WithJsonSchema({"type": "string", "enum": method_names(), "title": "Method"})
]
"""A merge method; one of those registered."""

SuiteName = Annotated[
    str,
    Field(
        min_length=1,
        title="Suite",
        description=f"a packaged suite ({', '.join(packaged_suites())}), or the path of a suite file",
    ),
]

CheckpointURI = Annotated[
    str, Field(min_length=1, title="Checkpoint", description="path or URI of a checkpoint (docs/checkpoints.md)")
]

CPU = "cpu"
DeviceName = Annotated[
    str, Field(title="Device", description="of the matrix work: cpu, cuda or cuda:1", pattern=r"^(cpu|cuda(:\d+)?)$")
]

RunnerName = Annotated[
    str,
    AfterValidator(_usable_runner),
    Field(
        title="Runner",
        description="where tasks run: threads, processes://4, dask://HOST:PORT or ray://HOST:PORT",
        pattern=rf"^({'|'.join(sorted(RUNNERS))})(://.+)?$",
    ),
]


def describe_method_parameters(schema: dict[str, Any]) -> None:
    """Add the parameters of every method to a model's JSON schema, which then takes no others."""
    takers: dict[str, list[str]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in method_names():
        for parameter, described in get_method(name).parameters.model_json_schema()["properties"].items():
            takers.setdefault(parameter, []).append(name)
            found.setdefault(parameter, described)
    for parameter, described in found.items():
        if parameter in schema["properties"]:
            continue
        of = takers[parameter]
        methods = "any method" if len(of) == len(method_names()) else ", ".join(of)
        optional = described.get("anyOf") or [
            {key: value for key, value in described.items() if key not in ("title", "description", "default")}
        ]
        if parameter == RANK:
            optional = [*optional, {"const": SEARCH, "type": "string"}]
        if {"type": "null"} not in optional:
            optional = [*optional, {"type": "null"}]
        schema["properties"][parameter] = {
            "title": described["title"],
            "description": f"{described['description']} ({methods})",
            "anyOf": optional,
            "default": None,
        }
    schema["additionalProperties"] = False
