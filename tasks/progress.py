"""Progress on the page of a Prefect run: an artifact with a bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

from tsvlib.progress import Progress

SECONDS_BETWEEN_UPDATES = 1.0


@contextmanager
def progress_artifact(title: str) -> Iterator[Progress]:
    """A bar that moves at most once a second, and to its end at the end; nothing outside of a run."""
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        yield lambda what, done, total: None
        return
    artifact: UUID = create_progress_artifact(0.0, description=title)  # type: ignore[assignment]
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if total and now - last >= SECONDS_BETWEEN_UPDATES:
            last = now
            update_progress_artifact(artifact, 100.0 * done / total, f"{title}: {done} of {total} ({what})")

    yield report
    update_progress_artifact(artifact, 100.0, f"{title}: done")
