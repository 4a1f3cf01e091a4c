"""Options that several verbs share: which checkpoints, and how to print."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter

from ..cache import Cache, default_cache
from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import MethodError, SettingError, SuiteError
from ..key_policy import KeyPolicy
from ..suite import Suite, load_suite


@Parameter(name="*")
@dataclass(frozen=True)
class Sources:
    """Which base and fine-tunes: a suite, or a base and tasks."""

    suite: Annotated[str | None, Parameter(help="A suite's name or YAML file, in place of --base and --task.")] = None
    base: Annotated[str | None, Parameter(help="The pre-trained checkpoint.")] = None
    task: Annotated[
        list[str] | None, Parameter(help="NAME=CHECKPOINT of a fine-tune; repeat for each.", negative=())
    ] = None

    def load_suite(self) -> Suite | None:
        """The suite that was named, if any."""
        return load_suite(self.suite) if self.suite else None

    @property
    def key_policy(self) -> KeyPolicy | None:
        """Which parameters count as matrices, if a suite says so."""
        suite = self.load_suite()
        return suite.key_policy if suite else None

    @property
    def given(self) -> bool:
        """Whether any of them was named."""
        return bool(self.suite or self.base or self.task)

    def open(self) -> tuple[Checkpoint, dict[str, Checkpoint]]:
        """Open the base and every fine-tune.

        Raises:
            SuiteError: neither a suite nor a base and tasks, both, or a task named twice.
            CheckpointError: a file is missing or unreadable.
        """
        base, tasks = self.uris()
        return open_checkpoint(base), {name: open_checkpoint(uri) for name, uri in tasks.items()}

    def uris(self) -> tuple[str, dict[str, str]]:
        """Where the base and every fine-tune lie.

        Raises:
            SuiteError: neither a suite nor a base and tasks, both, or a task named twice.
        """
        suite = self.load_suite()
        if suite and (self.base or self.task):
            raise SuiteError("--suite: stands in place of --base and --task; give one or the other.")
        if suite:
            return suite.base_uri, suite.checkpoints
        if self.base and self.task:
            return self.base, parse_pairs(self.task, "--task")
        raise SuiteError("Give --suite NAME_OR_FILE, or --base CHECKPOINT and --task NAME=CHECKPOINT.")


@Parameter(name="*")
@dataclass(frozen=True)
class Caching:
    """Whether to take from the cache what was computed before."""

    cache: Annotated[
        bool | None,
        Parameter(help="Keep factors and merged layers, and take those kept; by default where there is a store."),
    ] = None
    recompute: Annotated[bool, Parameter(help="Compute anew what the cache holds, and keep that.", negative=())] = False

    def open(self) -> Cache | None:
        """The cache, or None for none.

        Raises:
            SettingError: $TSV_CACHE is not understood, or both --no-cache and --recompute are given.
        """
        if self.cache is False and self.recompute:
            raise SettingError("--recompute: replaces what the cache holds, and --no-cache leaves it alone; give one.")
        return default_cache(self.cache, self.recompute)


@Parameter(name="*")
@dataclass(frozen=True)
class Printing:
    """How to print."""

    json: Annotated[bool, Parameter(help="Print the result as JSON.", negative=())] = False
    quiet: Annotated[bool, Parameter(help="Print nothing but errors and warnings.", negative=())] = False


def parse_pairs(pairs: Iterable[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` strings as a dictionary.

    Raises:
        SuiteError: a string without ``=``, or a name given twice.
    """
    result: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not (name and separator and value):
            raise SuiteError(f"{option} {pair!r}: write it as NAME=VALUE.")
        if name in result:
            raise SuiteError(f"{option} {pair!r}: {name!r} was given before as {result[name]!r}; name each once.")
        result[name] = value
    return result


def parse_parameters(settings: Iterable[str]) -> dict[str, Any]:
    """``--set NAME=VALUE`` as method parameters; values are read as YAML scalars (1.0, true, word)."""
    try:
        return {name: yaml.safe_load(value) for name, value in parse_pairs(settings, "--set").items()}
    except yaml.YAMLError as error:
        raise MethodError(f"--set: a value is not readable: {error}") from error


def output_path(out: Path, force: bool) -> Path:
    """The file to write, which must not exist yet unless ``force``."""
    if out.exists() and not force:
        raise SuiteError(f"{out}: exists already. Choose another --out, or add --force to replace it.")
    return out
