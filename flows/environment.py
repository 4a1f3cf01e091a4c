"""Where Prefect, MLflow and the store keep their state: beside the work, unless the environment says otherwise."""

from __future__ import annotations

import os
from pathlib import Path

from tasks.place import VARIABLE, enter_described

CACHE_VARIABLE = "TSV_CACHE"  # as in tsvlib.cache, which would import torch here
PREFECTS_OWN = {"refresh": "PREFECT_TASKS_REFRESH_CACHE", "off": "PREFECT_TASKS_DISABLE_CACHING"}
"""What $TSV_CACHE says to the library -> what says the same to Prefect of whole tasks."""


def prepare() -> None:
    """Set what is not set yet. Everything lies below the current folder, nothing in the home directory."""
    if VARIABLE in os.environ:  # a worker of a cluster: the place is the flow's
        enter_described()
    root = Path.cwd()
    state = root / ".tsv"
    (state / "prefect").mkdir(parents=True, exist_ok=True)
    defaults = {
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(state / "store" / "results"),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # with the defaults the server falls minutes behind a few hundred short tasks
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
        "TSV_STORE": str(state / "store"),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with 7, a server that is gone holds work up for minutes
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MPLCONFIGDIR": str(state / "matplotlib"),
        "DO_NOT_TRACK": "true",
    }
    if switch := PREFECTS_OWN.get(os.environ.get(CACHE_VARIABLE, "")):
        defaults[switch] = "true"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
