"""MLflow: one run a candidate, under the metric names that DVC's json has too.

Tracking is never cached: it is done from returned values, and a candidate that is already tracked with the same
figures is left as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import RunStatus
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from tsvlib.candidate import FINE_TUNED
from tsvlib.errors import UnreachableError
from tsvlib.git import git_commit
from tsvlib.report import Metrics, accuracy_plot

from .fetch import IO

CONTENT_TAG = "content_digest"  # what makes a run the same as an earlier one


class TrackingError(UnreachableError):
    """MLflow cannot keep what is tracked now; worth another attempt."""


class TrackedRun(BaseModel):
    """One candidate's run in MLflow."""

    model_config = ConfigDict(frozen=True)

    candidate: str
    run_id: str
    new: bool


@contextmanager
def _clear_lock() -> Iterator[None]:
    """Say in plain words that another process holds MLflow's database; MLflow itself waits for it for 20 seconds."""
    try:
        yield
    except Exception as error:  # MLflow and SQLAlchemy each wrap it in a class of their own
        if "database is locked" not in str(error):
            raise
        raise TrackingError(
            f"{mlflow.get_tracking_uri()}: locked by another process. End that one, then run the same command again: "
            "all that was computed is kept. Where many write at once, give MLflow a server or PostgreSQL."
        ) from error


@task(cache_policy=NO_CACHE, **IO)
@_clear_lock()
def track_candidates(
    suite: str,
    summary: dict[str, Metrics],
    parameters: dict[str, dict[str, Any]],
    digests: dict[str, str],
    base_digest: str,
    figures: dict[str, Path],
) -> list[TrackedRun]:
    """Log every candidate of a suite that is not tracked yet.

    Args:
        suite: the experiment's name.
        summary: candidate -> metrics.
        parameters: candidate -> what it was made with.
        digests: candidate -> digest of its weights.
        base_digest: of the base's weights.
        figures: file name -> plot of all candidates, attached to each new run.
    """
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(suite)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(suite)
    common = {
        "suite": suite,
        "base_digest": base_digest,
        "git_commit": git_commit(Path()) or "",
        "dvc_lock": _digest_of(Path("dvc.lock")),
        "prefect_flow_run": str(flow_run.id or ""),
    }
    tracked = []
    for name, metrics in summary.items():
        content = _content_digest(metrics, parameters.get(name, {}), digests[name])
        found = client.search_runs(
            [experiment_id],
            f"attributes.run_name = '{name}' and tags.{CONTENT_TAG} = '{content}' and attributes.status = 'FINISHED'",
        )
        if found:
            tracked.append(TrackedRun(candidate=name, run_id=found[0].info.run_id, new=False))
            continue
        run = client.create_run(
            experiment_id,
            run_name=name,
            tags=common | {"method": name, "candidate_digest": digests[name], CONTENT_TAG: content},
        )
        run_id = run.info.run_id
        try:
            for key, value in parameters.get(name, {}).items():
                client.log_param(run_id, key, value)
            for key, value in metrics.items():
                client.log_metric(run_id, key, value)
            client.log_figure(run_id, accuracy_plot(name, metrics, summary[FINE_TUNED]), "accuracy_per_task.png")
            for file in figures.values():
                client.log_artifact(run_id, str(file))
            client.set_terminated(run_id)
        except BaseException:
            client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED))
            raise
        tracked.append(TrackedRun(candidate=name, run_id=run_id, new=True))
    return tracked


def _content_digest(metrics: Metrics, parameters: dict[str, Any], digest: str) -> str:
    """Over everything that is not a measurement of time, memory or work."""
    passing = ("seconds/", "peak_", "reused/", "computed/")
    lasting = {key: value for key, value in metrics.items() if not key.startswith(passing)}
    return hashlib.sha256(json.dumps([lasting, parameters, digest], sort_keys=True).encode()).hexdigest()[:16]


def _digest_of(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest() if file.exists() else ""
