"""Fetching: from what a suite names to files at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tsvlib.checkpoint import open_checkpoint
from tsvlib.data import open_data
from tsvlib.errors import TSVError, UnreachableError
from tsvlib.suite import Suite

from .blob import Blob, existing_file


def worth_a_retry(task: Any, run: Any, state: Any) -> bool:
    """Whether a task failed of what may pass, such as a source that did not answer; not of a user's mistake."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, UnreachableError) or not isinstance(error, TSVError)


IO: dict[str, Any] = {"retries": 3, "retry_delay_seconds": [1, 5, 20], "retry_condition_fn": worth_a_retry}
"""Options of tasks that talk to others; those that compute are not repeated, as they would fail in the same way."""


@task(cache_policy=NO_CACHE, **IO)
def fetch_checkpoint(uri: str) -> Blob:
    """Bring one checkpoint to hand and take its digest."""
    path = open_checkpoint(uri).path
    return existing_file(path if path else Path(uri))


@task(cache_policy=NO_CACHE)
def fetch_images(suite: Suite, split: str) -> list[Blob]:
    """Take the digests of the files that an evaluation on one split reads."""
    files = [file for task in suite.tasks for file in open_data(suite.data(task)).evaluated_files(split)]
    return [existing_file(file) for file in dict.fromkeys(files)]


@task(cache_policy=NO_CACHE)
def fetch_model(suite: Suite) -> list[Blob]:
    """Take the digests of the CLIP model that heads are built from; none for a model that open_clip names."""
    folder = Path(suite.clip_model)
    return [existing_file(file) for file in sorted(folder.iterdir())] if folder.is_dir() else []
