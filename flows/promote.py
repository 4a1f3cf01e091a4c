"""Promotion: the best candidate of a suite into MLflow's registry, by the rules of params.yaml.

``tsv promote`` does it, and ``python -m flows.promote``, which is the DVC stage.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from mlflow import get_tracking_uri
from prefect import flow
from prefect.artifacts import create_markdown_artifact

from tasks.outbox import CANNOT_TAKE
from tasks.registry import Promotion, promote
from tasks.rule import Rule
from tsvlib.checkpoint import atomic_write, open_checkpoint
from tsvlib.cli.options import Printing
from tsvlib.cli.printing import show
from tsvlib.errors import SettingError
from tsvlib.suite import load_suite

from .command import run
from .layout import made_candidates
from .params import load_params

log = logging.getLogger(__name__)


@flow(name="promote")
def promote_best(suite: str, rules: dict[str, Rule]) -> list[Promotion]:
    """Give every alias to the best candidate of a suite that its rule admits; what is not better replaces nothing.

    Args:
        suite: a packaged suite, or the path of a suite file.
        rules: alias -> rule.
    """
    loaded = load_suite(suite)
    files = {open_checkpoint(file).digest: file for file in made_candidates(loaded.name).values()}
    try:
        promotions = [promote(loaded, alias, rule, files) for alias, rule in rules.items()]
    except CANNOT_TAKE as error:
        raise SettingError(f"MLflow at {get_tracking_uri()}: {error}") from error
    create_markdown_artifact("\n".join(f"- {told(one)}" for one in promotions), key="promotion")
    return promotions


def told(one: Promotion) -> str:
    """In words."""
    where = f"models:/{one.model}@{one.alias}"
    return f"{where} is now version {one.version}: {one.why}" if one.promoted else f"{where} stays: {one.why}"


def promote_command(
    *,
    suite: Annotated[str | None, Parameter(help="A suite's name or file; that of params.yaml by default.")] = None,
    printing: Printing | None = None,
) -> None:
    """Register the best tracked candidate in MLflow, by the rules under 'promote' in params.yaml."""

    def main() -> None:
        params = load_params()
        promotions = promote_best(suite or params.suite, params.promote)
        result = {"promotions": [one.model_dump() for one in promotions]}
        show(result, "\n".join(told(one) for one in promotions), printing or Printing())

    run(main)


if __name__ == "__main__":

    def main() -> None:
        params = load_params()
        name = load_suite(params.suite).name
        try:
            promotions = promote_best(params.suite, params.promote)
        except SettingError as error:  # what was made and measured stands without the registry
            log.warning("%s\nNothing was promoted; do it later with 'tsv promote'.", error)
            promotions = []
        for one in promotions:
            log.info("%s", told(one))
        with atomic_write(Path("registry") / f"{name}.json") as file:
            file.write((json.dumps([one.model_dump() for one in promotions], indent=1) + "\n").encode())

    run(main)
