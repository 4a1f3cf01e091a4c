"""A run as it is to stand in MLflow: described first, kept in a folder, sent by whoever can reach the server.

Sending is safe to repeat: a run that is there whole is left as it is, one that an earlier attempt left half-way is
marked failed and sent anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LifecycleStage,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunStatus,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE, MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE
from pydantic import BaseModel, ConfigDict

from tsvlib.errors import UnreachableError
from tsvlib.report import Metrics

CONTENT_TAG = "content_digest"
"""Tag of what makes a run the same as an earlier one."""
SWEEP_TAG = "sweep"
"""Tag of the runs of one sweep: its name, and a digest of what came out."""
FINISHED = RunStatus.to_string(RunStatus.FINISHED)
PASSING = ("seconds/", "peak_", "reused/", "computed/")
"""How metrics start that differ from one run of the same to the next."""
_MOST_PARAMS, _MOST_METRICS = 100, 1000  # that MLflow takes at a time
_PAGE = 1000
_NOT_IN_MODEL_NAMES = r"[/:.%\"']"


class TrackingError(UnreachableError):
    """MLflow cannot take a run now; the message says why, and what to do."""


class DataSet(BaseModel):
    """Images that a candidate was measured on."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    source: str
    split: str
    images: int


class RunRecord(BaseModel):
    """All of a run but its files."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    name: str
    description: str
    tags: dict[str, str]
    parameters: dict[str, Any]
    metrics: Metrics
    datasets: list[DataSet] = []

    @property
    def content(self) -> str:
        """16 hex digits over everything that is not a measurement of time, memory or work."""
        lasting = {key: value for key, value in self.metrics.items() if not key.startswith(PASSING)}
        described = [self.name, lasting, self.parameters, self.tags.get("candidate_digest")]
        if SWEEP_TAG in self.tags:  # the same candidate in another sweep is another run
            described.append(self.tags[SWEEP_TAG])
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def experiment_for_runs(client: MlflowClient, name: str) -> Experiment:
    """The experiment of this name, made if it is not there.

    Raises:
        TrackingError: it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return experiment_for_runs(client, name)  # someone else made it in the meantime
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise TrackingError(
            f"the experiment {name!r} was deleted. Bring it back with 'mlflow experiments restore -x "
            f"{found.experiment_id}', or remove it for good with 'mlflow gc'."
        )
    return found


def runs_by_content(client: MlflowClient, experiment: Experiment) -> dict[str, list[Run]]:
    """Content -> the runs of an experiment that have it."""
    found: dict[str, list[Run]] = {}
    token = None
    while True:
        page = client.search_runs([experiment.experiment_id], "", ViewType.ACTIVE_ONLY, _PAGE, page_token=token)
        for run in page:
            found.setdefault(run.data.tags.get(CONTENT_TAG, ""), []).append(run)
        if not (token := page.token):
            return found


def send(
    client: MlflowClient, experiment: Experiment, record: RunRecord, files: Path, earlier: Iterable[Run]
) -> tuple[str, bool]:
    """The run's id, and whether it is new.

    Args:
        client: of the tracking server.
        experiment: where to.
        record: what to send.
        files: a folder; all that is in it becomes the run's artifacts.
        earlier: runs of the same content.
    """
    for run in earlier:
        if run.info.status == FINISHED:
            return run.info.run_id, False
        if run.info.status == RunStatus.to_string(RunStatus.RUNNING):
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.FAILED))
    described = {
        CONTENT_TAG: record.content,
        MLFLOW_RUN_NOTE: record.description,
        MLFLOW_SOURCE_NAME: "tsvlib",
        MLFLOW_SOURCE_TYPE: "PROJECT",
    }
    run_id = client.create_run(experiment.experiment_id, run_name=record.name, tags=record.tags | described).info.run_id
    try:
        _log(client, experiment, run_id, record)
        client.log_artifacts(run_id, str(files))
        client.set_terminated(run_id)
    except BaseException:
        _mark_failed(client, run_id)
        raise
    return run_id, True


def _log(client: MlflowClient, experiment: Experiment, run_id: str, record: RunRecord) -> None:
    params = [Param(key, str(value)) for key, value in record.parameters.items()]
    model = client.create_logged_model(
        experiment.experiment_id,
        name=re.sub(_NOT_IN_MODEL_NAMES, "_", record.name),
        source_run_id=run_id,
        tags={key: record.tags[key] for key in ("suite", "candidate_digest", "base_digest") if key in record.tags},
        params={key: str(value) for key, value in record.parameters.items()},
        model_type=record.tags.get("kind"),
    )
    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, 0, model_id=model.model_id) for key, value in record.metrics.items()]
    for start in range(0, max(len(metrics), 1), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS], params=params[:_MOST_PARAMS])
    client.log_inputs(run_id, [_as_input(one) for one in record.datasets])
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    client.finalize_logged_model(model.model_id, "READY")


def _as_input(one: DataSet) -> DatasetInput:
    profile = json.dumps({"num_rows": one.images})
    dataset = Dataset(one.name, one.digest, "local", json.dumps({"uri": one.source}), profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", one.split)])


def _mark_failed(client: MlflowClient, run_id: str) -> None:
    try:
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED))
    except Exception:  # the server is gone: the next attempt marks it
        return
