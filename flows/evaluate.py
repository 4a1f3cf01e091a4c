"""Evaluation: every candidate of a suite on its test images, beside the base and the fine-tuned models.

``python -m flows.evaluate`` is the DVC stage. Answers are cached by content: a new alpha costs one evaluation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from tasks.blob import Blob
from tasks.evaluate import evaluate_file, evaluate_fine_tuned, evaluate_zero_shot, read_answers
from tasks.fetch import fetch_checkpoint, fetch_images, fetch_model
from tasks.models import Answered
from tsvlib.candidate import FINE_TUNED, ZERO_SHOT, Candidate
from tsvlib.candidate import candidates as candidates_of
from tsvlib.checkpoint import atomic_write
from tsvlib.kept import KeptMatrix, kept_metrics
from tsvlib.predictions import Predictions
from tsvlib.preflight import check_before_evaluation
from tsvlib.protocol import gather, has_split
from tsvlib.report import Metrics, metrics
from tsvlib.suite import Suite, load_suite

from .choices import SuiteName
from .command import run
from .layout import candidate_folder, made_candidates, predictions_file
from .merge import fetch_suite
from .params import load_params
from .runners import CONFIGURED, Call, side_by_side


@flow(name="evaluate", task_runner=CONFIGURED)
def evaluate_suite(
    suite: SuiteName, candidates: dict[str, Path], split: Literal["validation", "test"] = "test"
) -> dict[str, Metrics]:
    """Candidate -> metrics, the references ``zero-shot`` and ``fine-tuned`` among them."""
    loaded = load_suite(suite)
    base, tasks = fetch_suite(loaded)
    files = {name: fetch_checkpoint(str(path)) for name, path in candidates.items()}
    measured = measure(loaded, base, tasks, files, split)
    measured.predictions.write(predictions_file(loaded.name))
    return measured.summary


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    predictions: Predictions
    summary: dict[str, Metrics]
    """Candidate -> metrics, the references among them."""


def measure(suite: Suite, base: Blob, tasks: dict[str, Blob], files: dict[str, Blob], split: str) -> Measured:
    """Measure files, and the references beside them; on the workers of the flow that calls this."""
    images, model = fetch_images(suite, split), fetch_model(suite)
    check_before_evaluation(suite)
    shared = {"suite": suite, "model": model, "images": images, "split": split}
    calls: dict[str, Call] = {
        ZERO_SHOT: (evaluate_zero_shot, shared | {"base": base}),
        FINE_TUNED: (evaluate_fine_tuned, shared | {"checkpoints": tasks}),
        **{name: (evaluate_file, shared | {"name": name, "file": file, "base": base}) for name, file in files.items()},
    }
    guard: list[Call] = []
    if split == "test" and has_split(suite, "validation"):  # shows whether a fine-tune has seen test images
        held_out = shared | {"images": fetch_images(suite, "validation"), "split": "validation"}
        guard = [(evaluate_fine_tuned, held_out | {"checkpoints": tasks})]
    found: list[Answered] = side_by_side([*calls.values(), *guard], f"candidates evaluated on {split} images")
    answered = dict(zip(calls, found, strict=False))
    paths = {name: file.path for name, file in files.items()}
    predictions = _record(suite, split, answered, found[len(calls) :], candidates_of(suite, paths))
    findings = predictions.findings()
    sizes = {name: file.size for name, file in files.items()}
    sizes |= {ZERO_SHOT: base.size, FINE_TUNED: sum(blob.size for blob in tasks.values())}
    summary = {
        name: metrics(predictions, name, findings, sizes[name], base.size, **{"seconds/evaluate": one.seconds})
        for name, one in answered.items()
    }
    return Measured(predictions, summary)


def _record(
    suite: Suite, split: str, answered: dict[str, Answered], held_out: list[Answered], candidates: list[Candidate]
) -> Predictions:
    read = {name: read_answers(one) for name, one in answered.items()}
    labels = {split: read[FINE_TUNED][1]}
    answers = {split: {name: found for name, (found, _) in read.items()}}
    for one in held_out:
        found, labels["validation"] = read_answers(one)
        answers["validation"] = {FINE_TUNED: found}
    return gather(suite, split, labels, answers, candidates)


@task(cache_policy=NO_CACHE)
def write_metrics(summary: dict[str, Metrics], folder: Path) -> None:
    """One json a candidate, and all of them in summary.json."""
    files: dict[str, Any] = summary | {"summary": summary}
    for name, content in files.items():
        with atomic_write(folder / f"{name}.json") as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


def with_costs(summary: dict[str, Metrics], suite: str) -> dict[str, Metrics]:
    """The metrics with what making each candidate took and what it keeps of the tasks, from the json beside it."""
    result = {}
    for name, row in summary.items():
        file = candidate_folder(suite) / f"{name}.json"
        made = json.loads(file.read_text()) if file.exists() else {}
        costs = {"seconds/make": made["seconds"], "peak_rss_bytes": made["peak_rss_bytes"]} if made else {}
        for kind, counts in made.get("work", {}).items():
            costs |= {f"{what}/{kind}": count for what, count in counts.items()}
        result[name] = row | costs | kept_metrics([KeptMatrix.model_validate(one) for one in made.get("kept", [])])
    return result


if __name__ == "__main__":

    def main() -> None:
        params = load_params()
        name = load_suite(params.suite).name
        summary = evaluate_suite(params.suite, made_candidates(name))
        write_metrics.fn(with_costs(summary, name), Path("metrics") / name)

    run(main)
