"""The registry: the best tracked candidate under an alias, by a stated rule; whatever is worse does not replace it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Map
from pydantic import BaseModel, ConfigDict

import tsvlib
from tsvlib.serving import export_classifier
from tsvlib.suite import Suite

from . import serving_model
from .rule import Rule

log = logging.getLogger(__name__)

REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "open_clip_torch", "numpy", "pandas", "pyarrow", "scipy", "safetensors",
    "pydantic", "pillow", "pyyaml", "filelock", "fsspec", "huggingface_hub", "psutil", "threadpoolctl",
)  # fmt: skip
"""What tsvlib.serving imports, for MLflow to install where the model is served."""
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary, "image"), ColSpec(DataType.string, "task", required=False)]),
    outputs=Schema(
        [
            ColSpec(DataType.long, "image"),
            ColSpec(DataType.string, "task"),
            ColSpec(DataType.string, "class"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]
    ),
    params=ParamSchema([ParamSpec("task", DataType.string, ""), ParamSpec("top", DataType.long, 5)]),
)
_CARRIED = ("suite", "method", "kind", "candidate_digest", "base_digest", "git_commit", "dvc_lock", "prefect_flow_run")
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class Promotion(BaseModel):
    """What became of an alias."""

    model_config = ConfigDict(frozen=True)

    model: str
    alias: str
    candidate: str | None
    """The best that may win; None if there is none."""
    version: int | None
    """That bears the alias now."""
    promoted: bool
    why: str


def promote(suite: Suite, alias: str, rule: Rule, files: Mapping[str, Path]) -> Promotion:
    """Give an alias of the registered model that is named as the suite to its best candidate.

    Args:
        suite: whose experiment and model.
        alias: such as ``champion``.
        rule: who wins.
        files: digest -> file of the candidates that are at hand.

    Raises:
        MlflowException: the registry cannot be reached, or the rule's search is not understood.
    """
    client = MlflowClient()
    told: dict[str, Any] = {"model": suite.name, "alias": alias}
    challenger, champion = _best(client, suite.name, rule, files), _bearer(client, suite.name, alias)
    now = int(champion.version) if champion else None
    if challenger is None:
        why = f"no tracked candidate of which the file is here fits: {rule.among}, with a metric {rule.metric}"
        return Promotion(**told, candidate=None, version=now, promoted=False, why=why)
    told["candidate"] = challenger.info.run_name
    wins, why = _compare(challenger, champion, rule)
    if not wins:
        client.set_tag(challenger.info.run_id, f"promotion.{alias}", f"no: {why}")
        return Promotion(**told, version=now, promoted=False, why=why)
    made = _register(client, suite, challenger, files[challenger.data.tags["candidate_digest"]], alias, rule, why)
    client.set_registered_model_alias(suite.name, alias, made.version)
    client.set_tag(challenger.info.run_id, f"promotion.{alias}", f"version {made.version}: {why}")
    return Promotion(**told, version=int(made.version), promoted=True, why=why)


def _best(client: MlflowClient, suite: str, rule: Rule, files: Mapping[str, Path]) -> Run | None:
    experiment = client.get_experiment_by_name(suite)
    if experiment is None:
        return None
    among = f"{rule.among} and attributes.status = 'FINISHED'" if rule.among else "attributes.status = 'FINISHED'"
    order = [f"metrics.`{rule.metric}` DESC", "metrics.bytes ASC", "attributes.start_time DESC"]
    for run in client.search_runs([experiment.experiment_id], among, order_by=order):
        if run.data.tags.get("candidate_digest") in files and rule.metric in run.data.metrics:
            return run
    return None


def _bearer(client: MlflowClient, model: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        return None


def _compare(challenger: Run, champion: ModelVersion | None, rule: Rule) -> tuple[bool, str]:
    """Whether the challenger wins, and why or why not."""
    name, value = challenger.info.run_name, challenger.data.metrics[rule.metric]
    if champion is None:
        return True, f"{name} has the highest {rule.metric}, {value:.4f}, and there was none before"
    bearer = champion.tags
    before = f"version {champion.version} ({bearer.get('candidate', '?')})"
    if bearer.get("candidate_digest") == challenger.data.tags["candidate_digest"]:
        return False, f"{name} bears the alias already, as {before}"
    if (bearer.get("base_digest"), bearer.get("tasks")) != (challenger.data.tags["base_digest"], _tasks(challenger)):
        return True, f"{name} has the highest {rule.metric}, {value:.4f}; {before} is of another base or other tasks"
    if rule.metric not in bearer:
        return True, f"{name} has {rule.metric} {value:.4f}; of {before} it is not known"
    held = float(bearer[rule.metric])
    figures = f"{rule.metric} {value:.4f} against {held:.4f} of {before}"
    if value > held + rule.margin:
        return True, f"{name} is better: {figures}"
    needed = f" by more than {rule.margin:g}" if rule.margin else ""
    return False, f"{name} is not better{needed}: {figures}"


def _tasks(run: Run) -> str:
    return " ".join(sorted(key.removeprefix("accuracy/") for key in run.data.metrics if key.startswith("accuracy/")))


def _register(
    client: MlflowClient, suite: Suite, run: Run, file: Path, alias: str, rule: Rule, why: str
) -> ModelVersion:
    with tempfile.TemporaryDirectory(prefix="tsv-export-") as folder:
        exported = Path(folder) / "classifier"
        export_classifier(suite, file, exported)
        info = mlflow.pyfunc.log_model(
            name=run.info.run_name,
            model_id=_logged_model(run),
            python_model=serving_model.__file__,
            artifacts={"classifier": str(exported)},
            code_paths=[str(Path(tsvlib.__file__).parent)],
            signature=SIGNATURE,
            input_example=_example(suite),
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        )
    made = mlflow.register_model(info.model_uri, suite.name)
    tags = {key: run.data.tags.get(key, "") for key in _CARRIED}
    tags |= {"candidate": run.info.run_name, "tasks": _tasks(run), rule.metric: repr(run.data.metrics[rule.metric])}
    tags |= {"rule": f"{rule.metric}, more by {rule.margin:g}, among: {rule.among}", f"promoted.{alias}": why}
    for key, value in tags.items():
        client.set_model_version_tag(suite.name, made.version, key, value)
    client.update_model_version(suite.name, made.version, f"{why}.\n\n{run.data.tags.get('mlflow.note.content', '')}")
    return made


def _logged_model(run: Run) -> str | None:
    outputs = run.outputs.model_outputs if run.outputs else []
    return outputs[0].model_id if outputs else None


def _example(suite: Suite) -> pd.DataFrame:
    """A real image, of the first task."""
    task = next(iter(suite.tasks))
    return pd.DataFrame({"image": list(suite.images(task, "test").encoded([0])), "task": [task]})
