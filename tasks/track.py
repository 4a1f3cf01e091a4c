"""Tracking: one MLflow run a candidate, under the metric names that DVC's json has too.

It is never cached: it is done from returned values, and a candidate that is already tracked with the same figures is
left as it is.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from pandas import DataFrame
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from tsvlib.git import git_commit
from tsvlib.report import Metrics

from .fetch import IO
from .outbox import default_outbox, finished_runs, push_or_keep
from .run_record import DataSet, RunRecord


class Tracked(BaseModel):
    """One candidate as it is to be tracked."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    name: str
    kind: str
    """merged, archive or reference."""
    digest: str
    parameters: dict[str, Any]
    metrics: Metrics
    tags: dict[str, str] = {}
    """Further ones."""
    provenance: dict[str, Any] = {}
    files: dict[str, Path] = {}
    """Path among the run's artifacts -> file."""
    figures: dict[str, Callable[[], Figure]] = {}
    """Path among the artifacts -> what draws it; drawn only for a new run."""
    tables: dict[str, Callable[[], DataFrame]] = {}
    """Path among the artifacts -> what makes it, to be written as CSV; made only for a new run."""


class TrackedRun(BaseModel):
    """One candidate's run in MLflow."""

    model_config = ConfigDict(frozen=True)

    candidate: str
    run_id: str
    new: bool


@task(cache_policy=NO_CACHE, **IO)
def track_candidates(
    suite: str, candidates: list[Tracked], base_digest: str, datasets: list[DataSet], experiment: str | None = None
) -> list[TrackedRun]:
    """Keep a record of every candidate in the outbox, and send to MLflow what it has not got.

    Args:
        suite: its name.
        candidates: what to track.
        base_digest: of the base's weights.
        datasets: that they were measured on.
        experiment: where to; by default the one that is named as the suite.
    """
    experiment = experiment or suite
    common = {
        "suite": suite,
        "base_digest": base_digest,
        "git_commit": git_commit(Path()) or "",
        "dvc_lock": _md5(Path("dvc.lock")),
        "prefect_flow_run": str(flow_run.id or ""),
    }
    outbox, there = default_outbox(), finished_runs(experiment)
    tracked = []
    for one in candidates:
        tags = {"method": str(one.parameters.get("method", one.name)), "kind": one.kind, "candidate_digest": one.digest}
        tags |= one.tags
        record = RunRecord(
            experiment=experiment,
            name=one.name,
            description=_described(one, suite),
            tags=common | tags,
            parameters=one.parameters,
            metrics=one.metrics,
            datasets=datasets,
        )
        if record.content in there:
            tracked.append(TrackedRun(candidate=one.name, run_id=there[record.content], new=False))
            continue
        with tempfile.TemporaryDirectory() as folder:
            provenance = Path(folder) / "provenance.json"
            provenance.write_text(json.dumps(common | tags | one.provenance, indent=1, default=str) + "\n")
            made = {name: _drawn(draw(), _place(Path(folder), name)) for name, draw in one.figures.items()}
            made |= {name: _written(make(), _place(Path(folder), name)) for name, make in one.tables.items()}
            outbox.put(record, {"provenance.json": provenance} | made | one.files)
    sent = push_or_keep(outbox) if len(tracked) < len(candidates) or outbox.waiting() else []
    return tracked + [TrackedRun(candidate=one.record.name, run_id=one.run_id, new=one.new) for one in sent]


def _place(folder: Path, name: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _written(table: DataFrame, file: Path) -> Path:
    table.to_csv(file, index=table.index.name is not None)
    return file


def _drawn(figure: Figure, file: Path) -> Path:
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=80)
    return file


def _described(one: Tracked, suite: str) -> str:
    """In Markdown, for the run's page."""
    metrics = one.metrics
    tasks = [key.removeprefix("accuracy/") for key in metrics if key.startswith("accuracy/")]
    settings = ", ".join(f"{key} = {value}" for key, value in one.parameters.items() if key != "method")
    half = 50 * (metrics["accuracy_high"] - metrics["accuracy_low"]) if "accuracy_high" in metrics else None
    return "\n\n".join(
        [
            f"**{one.name}** on suite {suite}, {one.kind}" + (f" ({settings})" if settings else ""),
            f"Accuracy {100 * metrics['accuracy']:.1f} %"
            + (f" ± {half:.1f}" if half is not None else "")
            + f", normalised {100 * metrics['accuracy_normalized']:.1f} %, over {len(tasks)} tasks.",
            f"{metrics['bytes'] / 1e6:.2f} MB, {metrics['bytes_ratio']:.2f} of one dense encoder."
            f" Weights {one.digest[:12]}.",
        ]
    )


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest() if file.exists() else ""
