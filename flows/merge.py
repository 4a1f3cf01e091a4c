"""Merging: task vectors, their singular vectors, and one merged checkpoint.

``python -m flows.merge METHOD`` is the DVC stage; the method's parameters stand in params.yaml.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prefect import flow

from tasks.blob import Blob
from tasks.fetch import fetch_checkpoint, fetch_images, fetch_model
from tasks.merge import factorise_task, merge_checkpoints
from tasks.models import Made
from tsvlib.checkpoint import atomic_write
from tsvlib.errors import MethodError
from tsvlib.methods import get_method
from tsvlib.suite import Suite, load_suite

from .command import run
from .params import load_params


def fetch_suite(suite: Suite) -> tuple[Blob, dict[str, Blob]]:
    """The base and the fine-tunes of a suite, fetched side by side."""
    uris = [suite.base_uri, *suite.checkpoints.values()]
    base, *fine_tuned = fetch_checkpoint.map(uris).result()
    return base, dict(zip(suite.tasks, fine_tuned, strict=True))


def factorise_all(base: Blob, tasks: dict[str, Blob], rank_fraction: float | None) -> None:
    """Singular vectors of every task into the factor cache, a task at a time (its matrices run side by side)."""
    for name, blob in tasks.items():
        factorise_task(name, base, blob, len(tasks), rank_fraction)


@flow(name="merge")
def merge_suite(suite: str, method: str = "tsv-m", parameters: dict[str, Any] | None = None) -> Made:
    """Merge a suite's fine-tunes by one method; alpha may be ``search``."""
    loaded = load_suite(suite)
    parameters = parameters or {}
    chosen = get_method(method)
    base, tasks = fetch_suite(loaded)
    if chosen.rank is not None:
        factorise_all(base, tasks, parameters.get("rank_fraction"))
    searched = parameters.get("alpha") == "search"
    if searched:
        from tasks.evaluate import choose_alpha  # loads open_clip, which no other merge needs

        unscaled = merge_checkpoints(base, tasks, method, parameters | {"alpha": 1.0})
        images, model = fetch_images(loaded, "validation"), fetch_model(loaded)
        found = choose_alpha(loaded, unscaled.blob, base, model, images)
        parameters = parameters | {"alpha": found.alpha}
    made = merge_checkpoints(base, tasks, method, parameters)
    return made.model_copy(update={"parameters": parameters, "alpha_curve": found.curve if searched else {}})


def write_candidate(made: Made, folder: Path, name: str) -> None:
    """Give a made file its name among a suite's candidates, with what it cost beside it."""
    made.blob.link(folder / f"{name}.safetensors")
    with atomic_write(folder / f"{name}.json") as file:
        file.write((json.dumps(made.record(), indent=1, sort_keys=True) + "\n").encode())


def candidate_folder(suite: str) -> Path:
    """Where a suite's candidates stand."""
    return Path("models") / suite


if __name__ == "__main__":
    (method,) = sys.argv[1:]

    def main() -> None:
        params = load_params()
        if method not in params.merge:
            raise MethodError(f"params.yaml: merge has no {method!r}. There are: {', '.join(params.merge)}.")
        parameters = params.merge[method].given()
        get_method(method).parse(parameters | ({"alpha": 1.0} if parameters.get("alpha") == "search" else {}))
        made = merge_suite(params.suite, method, parameters)
        write_candidate(made, candidate_folder(load_suite(params.suite).name), method)

    run(main)
