"""Checkpoints: bring a suite's base and fine-tunes to hand, making those of the lab.

``python -m flows.checkpoints`` is the DVC stage; its suite and the lab's recipe stand in params.yaml.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from tasks.blob import Blob
from tasks.fetch import fetch_checkpoint
from tsvlib.cli.printing import progress
from tsvlib.recipe import Recipe
from tsvlib.suite import Suite, load_suite

from .command import run
from .params import load_params

LAB = Path("data/lab")  # as in the packaged suites


@task(cache_policy=NO_CACHE)  # it finds by itself what is already made
def make_lab_checkpoints(tasks: list[str], recipe: Recipe) -> None:
    """Unpack the lab's base, draw its pictures and fine-tune on them."""
    from tsvlab.make import make_lab

    with progress("fine-tune") as report:
        make_lab(tasks, LAB, recipe, progress=report)


@flow(name="checkpoints")
def fetch_checkpoints(suite: str, lab: Recipe | None = None) -> dict[str, Blob]:
    """Base and fine-tuned checkpoints of a suite, by task; the base under the empty name."""
    loaded = load_suite(suite)
    if is_lab(loaded):
        make_lab_checkpoints(list(loaded.tasks), lab or Recipe())
    uris = {"": loaded.base_uri} | loaded.checkpoints
    return {name: fetch_checkpoint(uri) for name, uri in uris.items()}


def is_lab(suite: Suite) -> bool:
    """Whether a suite's checkpoints are made here."""
    return suite.path(suite.model) == LAB / "base"


if __name__ == "__main__":

    def main() -> None:
        params = load_params()
        LAB.mkdir(parents=True, exist_ok=True)  # DVC wants the stage's output even where a suite brings its own files
        fetch_checkpoints(params.suite, params.lab)

    run(main)
