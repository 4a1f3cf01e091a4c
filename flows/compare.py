"""Comparison: every candidate as a run in MLflow, and the table and plots of all of them.

``python -m flows.compare`` is the DVC stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.run_record import DataSet
from tasks.track import Tracked, TrackedRun, track_candidates
from tsvlib.candidate import FINE_TUNED, kind_of
from tsvlib.charts import (
    confusion_plot,
    confusion_table,
    interference_plot,
    kept_plot,
    kept_table,
    radar_plot,
    storage_plot,
)
from tsvlib.checkpoint import open_checkpoint
from tsvlib.guard import Finding
from tsvlib.kept import KeptMatrix
from tsvlib.predictions import Predictions, read_predictions
from tsvlib.report import Metrics, accuracy_plot, alpha_plot, comparison, comparison_plot, formatted, read_summary, told
from tsvlib.suite import Suite, load_suite

from .command import run
from .layout import candidate_folder, predictions_file
from .page import show_plot
from .params import load_params


@task(cache_policy=NO_CACHE)
def write_report(
    summary: dict[str, Any], curves: dict[str, Any], findings: list[Finding], folder: Path
) -> dict[str, Path]:
    """The table as Markdown and CSV, and the plots as SVG; file name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    table = comparison(summary)
    lines = [formatted(table, summary).to_markdown(disable_numparse=True), *told(findings)]
    (folder / "comparison.md").write_text("\n".join(lines) + "\n")
    table.round(4).to_csv(folder / "comparison.csv", index_label="candidate")
    plots = {"comparison.svg": comparison_plot(summary)}
    plots |= {f"{name}.svg": accuracy_plot(name, row, summary[FINE_TUNED]) for name, row in summary.items()}
    if curves:
        plots["alpha.svg"] = alpha_plot(curves)
    for name, figure in plots.items():
        figure.savefig(folder / name, metadata={"Date": None})  # without a date the file is the same each time
    return {name: folder / name for name in ("comparison.md", "comparison.csv", *plots)}


@flow(name="compare")
def compare_suite(suite: str, summary: Path, report: Path) -> list[TrackedRun]:
    """Report and track what an evaluation found."""
    loaded = load_suite(suite)
    rows = read_summary(summary)
    made = {name: _record(candidate_folder(loaded.name) / f"{name}.json") for name in rows}
    base = open_checkpoint(loaded.base_uri).digest
    files = {name: candidate_folder(loaded.name) / f"{name}.safetensors" for name in rows}
    own = {name: open_checkpoint(file) for name, file in files.items() if file.exists()}
    digests = {name: own[name].digest if name in own else base for name in rows}
    digests[FINE_TUNED] = "-".join(open_checkpoint(uri).digest[:8] for uri in loaded.checkpoints.values())
    curves = {name: record["alpha_curve"] for name, record in made.items() if record.get("alpha_curve")}
    kept = {name: [KeptMatrix.model_validate(one) for one in record.get("kept", [])] for name, record in made.items()}
    predictions = read_predictions(predictions_file(loaded.name))
    report_files = write_report(rows, curves, predictions.findings(), report)
    headers = {name: own[name].metadata if name in own else {} for name in rows}
    candidates = [
        Tracked(
            name=name,
            kind=kind_of(name, headers[name]),
            digest=digests[name],
            parameters={"method": name} | made[name].get("parameters", {}),
            metrics=row,
            provenance=headers[name],
            files={f"suite/{file}": path for file, path in report_files.items() if Path(file).stem not in rows},
            figures=run_figures(name, rows, predictions, kept[name], curves.get(name)),
            tables=run_tables(name, predictions, kept[name]),
        )
        for name, row in rows.items()
    ]
    tracked = track_candidates(loaded.name, candidates, base, datasets_of(loaded, predictions))
    table = comparison(rows).round(2).reset_index(names="candidate")
    columns = {str(column): list(values) for column, values in table.items()}
    create_table_artifact(columns, key="comparison", description=f"Candidates of {loaded.name}")
    show_plot(comparison_plot(rows), key="comparison-plot", title=f"Candidates of {loaded.name}")
    create_markdown_artifact((report / "comparison.md").read_text(), key="comparison-table")
    return tracked


def run_figures(
    name: str,
    rows: dict[str, Metrics],
    predictions: Predictions,
    kept: Sequence[KeptMatrix] = (),
    curve: dict[str, float] | None = None,
) -> dict[str, Callable[[], Figure]]:
    """Path among a run's artifacts -> what draws it."""
    row, reference = rows[name], rows[FINE_TUNED]
    drawn: dict[str, Callable[[], Figure]] = {
        "accuracy_per_task.png": lambda: accuracy_plot(name, row, reference),
        "radar.png": lambda: radar_plot(name, rows),
        "storage_accuracy.png": lambda: storage_plot(rows, name),
    }
    if curve:
        drawn["alpha.png"] = lambda: alpha_plot({name: curve})
    if any(one.sti is not None for one in kept):
        drawn["interference.png"] = lambda: interference_plot(name, kept)
    if kept:
        drawn["spectrum.png"] = lambda: kept_plot(name, kept)
    if name in predictions.candidates:
        drawn |= {
            f"confusion/{task}.png": partial(confusion_plot, predictions, name, task) for task in predictions.tasks
        }
    return drawn


def run_tables(
    name: str, predictions: Predictions, kept: Sequence[KeptMatrix] = ()
) -> dict[str, Callable[[], pd.DataFrame]]:
    """Path among a run's artifacts -> what makes it."""
    made: dict[str, Callable[[], pd.DataFrame]] = {"matrices.csv": lambda: kept_table(kept)} if kept else {}
    if name in predictions.candidates:
        made |= {
            f"confusion/{task}.csv": partial(confusion_table, predictions, name, task) for task in predictions.tasks
        }
    return made


def datasets_of(suite: Suite, predictions: Predictions) -> list[DataSet]:
    """What the answers were given to; the digest is that of the labels, in order."""
    return [
        DataSet(
            name=task,
            digest=hashlib.sha256(labels.tobytes()).hexdigest()[:16],
            source=str(suite.data(task)),
            split=predictions.split,
            images=len(labels),
        )
        for task, labels in predictions.labels[predictions.split].items()
    ]


def _record(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":

    def main() -> None:
        params = load_params()
        name = load_suite(params.suite).name
        compare_suite(params.suite, Path("metrics") / name / "summary.json", Path("plots") / name)

    run(main)
