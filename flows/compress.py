"""Compression: all fine-tunes of a suite as one TSV-C archive.

``python -m flows.compress METHOD`` is the DVC stage; the method's parameters stand in params.yaml.
"""

from __future__ import annotations

import sys
from typing import Any

from prefect import flow

from tasks.merge import compress_checkpoints, measure_archive
from tasks.models import Made
from tsvlib.errors import MethodError
from tsvlib.suite import load_suite

from .command import run
from .layout import candidate_folder
from .merge import factorise_all, fetch_suite, show_made, write_candidate
from .params import load_params
from .runners import CONFIGURED
from .work import log_work, of_this_run

METHODS = ("tsv-c",)


@flow(name="compress", task_runner=CONFIGURED)
def compress_suite(suite: str, method: str = "tsv-c", parameters: dict[str, Any] | None = None) -> Made:
    """Compress a suite's fine-tunes into one archive."""
    if method not in METHODS:
        raise MethodError(f"unknown compression {method!r}. Known: {', '.join(METHODS)}.")
    loaded = load_suite(suite)
    parameters = parameters or {}
    base, tasks = fetch_suite(loaded)
    factorised = factorise_all(base, tasks, parameters.get("rank_fraction"), loaded.key_policy)
    made = compress_checkpoints(base, tasks, parameters, loaded.key_policy)
    kept = measure_archive(made.blob, base, tasks)
    made = of_this_run(made, factorised).model_copy(update={"parameters": parameters, "kept": kept})
    show_made(f"{method} of {loaded.name}", made, list(tasks))
    log_work(f"{method} of {loaded.name}", made)
    return made


if __name__ == "__main__":
    (method,) = sys.argv[1:]

    def main() -> None:
        params = load_params()
        made = compress_suite(params.suite, method, params.compress.get(method, {}))
        write_candidate(made, candidate_folder(load_suite(params.suite).name), method)

    run(main)
