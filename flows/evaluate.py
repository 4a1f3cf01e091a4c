"""Evaluation: every candidate of a suite on its test images, beside the base and the fine-tuned models.

``python -m flows.evaluate`` is the DVC stage. Accuracies are cached by content: a new alpha costs one evaluation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from tasks.evaluate import evaluate_file, evaluate_fine_tuned, evaluate_zero_shot
from tasks.fetch import fetch_checkpoint, fetch_images, fetch_model
from tasks.models import Accuracies
from tsvlib.candidate import FINE_TUNED, ZERO_SHOT
from tsvlib.checkpoint import atomic_write
from tsvlib.cli.printing import progress
from tsvlib.report import Metrics, metrics
from tsvlib.suite import load_suite

from .command import run
from .merge import candidate_folder, fetch_suite
from .params import load_params


@flow(name="evaluate")
def evaluate_suite(
    suite: str, candidates: dict[str, Path], split: Literal["validation", "test"] = "test"
) -> dict[str, Metrics]:
    """Candidate -> metrics, the references ``zero-shot`` and ``fine-tuned`` among them."""
    loaded = load_suite(suite)
    base, tasks = fetch_suite(loaded)
    images, model = fetch_images(loaded, split), fetch_model(loaded)
    steps = len(candidates) + 2
    with progress("evaluate") as report:
        report(ZERO_SHOT, 0, steps)
        zero_shot: Accuracies = evaluate_zero_shot(loaded, base, model, images, split)
        report(FINE_TUNED, 1, steps)
        fine_tuned: Accuracies = evaluate_fine_tuned(loaded, tasks, model, images, split)
        measured, sizes = {ZERO_SHOT: zero_shot}, {ZERO_SHOT: base.size}
        for done, (name, path) in enumerate(candidates.items(), start=2):
            report(name, done, steps)
            file = fetch_checkpoint(str(path))
            measured[name] = evaluate_file(loaded, file, base, model, images, split)
            sizes[name] = file.size
        report("", steps, steps)
    measured[FINE_TUNED], sizes[FINE_TUNED] = fine_tuned, sum(blob.size for blob in tasks.values())
    return {
        name: metrics(
            found.accuracies, fine_tuned.accuracies, sizes[name], base.size, **{"seconds/evaluate": found.seconds}
        )
        for name, found in measured.items()
    }


@task(cache_policy=NO_CACHE)
def write_metrics(summary: dict[str, Metrics], folder: Path) -> None:
    """One json a candidate, and all of them in summary.json."""
    files: dict[str, Any] = summary | {"summary": summary}
    for name, content in files.items():
        with atomic_write(folder / f"{name}.json") as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def made_candidates(suite: str) -> dict[str, Path]:
    """The candidates that merging and compressing have left for a suite, by name."""
    return {file.stem: file for file in sorted(candidate_folder(suite).glob("*.safetensors"))}


def with_costs(summary: dict[str, Metrics], suite: str) -> dict[str, Metrics]:
    """The metrics with what making each candidate took, from the json beside it."""
    result = {}
    for name, row in summary.items():
        file = candidate_folder(suite) / f"{name}.json"
        made = json.loads(file.read_text()) if file.exists() else {}
        costs = {"seconds/make": made["seconds"], "peak_rss_bytes": made["peak_rss_bytes"]} if made else {}
        result[name] = row | costs
    return result


if __name__ == "__main__":

    def main() -> None:
        params = load_params()
        name = load_suite(params.suite).name
        summary = evaluate_suite(params.suite, made_candidates(name))
        write_metrics.fn(with_costs(summary, name), Path("metrics") / name)

    run(main)
