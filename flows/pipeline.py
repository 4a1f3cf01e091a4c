"""The whole chain as one flow: fetch, merge by each method, compress, evaluate, track and compare.

This is what schedules and triggers run (prefect.yaml). ``dvc repro`` runs the same flows as stages of their own;
both share one cache, so neither repeats what the other has done.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks.track import TrackedRun
from tsvlib.suite import load_suite

from .checkpoints import fetch_checkpoints
from .command import run
from .compare import compare_suite
from .compress import compress_suite
from .evaluate import evaluate_suite, with_costs, write_metrics
from .layout import candidate_folder, made_candidates
from .merge import merge_suite, write_candidate
from .params import Params, load_params
from .runners import using_runner


@flow(name="pipeline")
def merge_and_compare(params: Params | None = None) -> list[TrackedRun]:
    """Merge, compress, evaluate and compare one suite.

    Args:
        params: what to run; params.yaml by default.
    """
    params = params or load_params()
    with using_runner(params.runner):
        return _merge_and_compare(params)


def _merge_and_compare(params: Params) -> list[TrackedRun]:
    name = load_suite(params.suite).name
    fetch_checkpoints(params.suite, params.lab)
    for method, settings in params.merge.items():
        write_candidate(merge_suite(params.suite, method, settings, params.device), candidate_folder(name), method)
    for method, parameters in params.compress.items():
        write_candidate(compress_suite(params.suite, method, parameters), candidate_folder(name), method)
    metrics = Path("metrics") / name
    write_metrics(with_costs(evaluate_suite(params.suite, made_candidates(name)), name), metrics)
    return compare_suite(params.suite, metrics / "summary.json", Path("plots") / name)


if __name__ == "__main__":
    run(merge_and_compare)
