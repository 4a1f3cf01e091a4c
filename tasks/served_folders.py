"""Folders that MLflow keeps: a plug-in of tsvlib, registered in pyproject.toml under ``tsvlib.folders``."""

from __future__ import annotations

from pathlib import Path

from tsvlib.errors import CheckpointError
from tsvlib.sources import clear_errors


def download_classifier(uri: str) -> Path:
    """The exported classifier inside a model such as ``models:/NAME@ALIAS``; where it is not local, a copy.

    Raises:
        CheckpointError: there is no such model, or it is not one of ours.
    """
    from mlflow.artifacts import download_artifacts  # seconds to import

    with clear_errors(uri):
        folder = Path(download_artifacts(artifact_uri=uri))
    found = sorted(folder.glob("**/classifier.json"))
    if not found:
        raise CheckpointError(f"{uri}: holds no exported classifier. 'tsv promote' registers one.")
    return found[0].parent
