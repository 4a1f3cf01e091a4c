"""Comparison: every candidate as a run in MLflow, and the table and plots of all of them.

``python -m flows.compare`` is the DVC stage.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.track import TrackedRun, track_candidates
from tsvlib.candidate import FINE_TUNED
from tsvlib.checkpoint import open_checkpoint
from tsvlib.guard import Finding
from tsvlib.predictions import read_predictions
from tsvlib.report import accuracy_plot, alpha_plot, comparison, comparison_plot, formatted, read_summary, told
from tsvlib.suite import load_suite

from .command import run
from .evaluate import predictions_file
from .merge import candidate_folder
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
    digests = {name: record.get("digest", base) for name, record in made.items()}
    digests[FINE_TUNED] = "-".join(open_checkpoint(uri).digest[:8] for uri in loaded.checkpoints.values())
    curves = {name: record["alpha_curve"] for name, record in made.items() if record.get("alpha_curve")}
    findings = read_predictions(predictions_file(loaded.name)).findings()
    files = write_report(rows, curves, findings, report)
    parameters = {name: {"method": name} | record.get("parameters", {}) for name, record in made.items()}
    tracked = track_candidates(loaded.name, rows, parameters, digests, base, files)
    table = comparison(rows).round(2).reset_index(names="candidate")
    columns = {str(column): list(values) for column, values in table.items()}
    create_table_artifact(columns, key="comparison", description=f"Candidates of {loaded.name}")
    show_plot(comparison_plot(rows), key="comparison-plot", title=f"Candidates of {loaded.name}")
    create_markdown_artifact((report / "comparison.md").read_text(), key="comparison-table")
    return tracked


def _record(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":

    def main() -> None:
        params = load_params()
        name = load_suite(params.suite).name
        compare_suite(params.suite, Path("metrics") / name / "summary.json", Path("plots") / name)

    run(main)
