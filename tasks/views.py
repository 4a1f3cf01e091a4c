"""MLflow's pages as a user first sees them: the runs table with the columns that matter in front, and the charts."""

from __future__ import annotations

import base64
import json
import logging
import time
import zlib
from collections.abc import Iterator
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment

log = logging.getLogger(__name__)

KEY = "tsvlib-candidates"
_TAG = f"mlflow.sharedViewState.{KEY}"  # MLflow's own format, which it states nowhere: what is read may change
_COLUMNS = [  # MLflow shows attributes first, then metrics: few attributes bring the figures to the front
    "metrics.`accuracy_normalized`", "metrics.`accuracy`", "metrics.`bytes_ratio`", "metrics.`bytes`",
    "metrics.`seconds/make`", "params.`method`", "params.`alpha`", "params.`rank_fraction`", "tags.`kind`",
]  # fmt: skip
_OF_SWEEPS = ["tags.`best`", "params.`tasks`", "tags.`sweep`"]
SWEEPS = "-sweeps"
"""How the experiment of a suite's sweeps ends."""


def prepare_view(client: MlflowClient, experiment: Experiment) -> None:
    """Keep a view of an experiment's runs, best first, to be shared by a link."""
    now = int(time.time() * 1000)
    state: dict[str, Any] = {
        "orderByKey": "metrics.`accuracy_normalized`",
        "orderByAsc": False,
        "selectedColumns": [*_COLUMNS, *(_OF_SWEEPS if experiment.name.endswith(SWEEPS) else [])],
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "viewMaximized": True,
    }
    packed = "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    shared = {"name": "Candidates", "createdAt": now, "updatedAt": now, "state": packed}
    client.set_experiment_tag(experiment.experiment_id, _TAG, json.dumps(shared))


def prepared_views(address: str) -> Iterator[tuple[str, str]]:
    """(title, link) of the pages to begin with, of every experiment that has a prepared view.

    Args:
        address: of the MLflow server, such as http://127.0.0.1:5000.
    """
    for experiment in MlflowClient().search_experiments():
        if _TAG in experiment.tags:
            page = f"{address}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
            yield f"{experiment.name}, table", f"{page}&viewStateShareKey={KEY}"
            yield f"{experiment.name}, charts", f"{page}&compareRunsMode=CHART"
