"""The outbox: runs that wait to be sent to MLflow, each in a folder of its own, kept until they are there.

Everything passes through it. Where there is no tracking server, or its database is locked, read-only or of an old
schema, work goes on, and the runs are sent later: by the next comparison, or by ``tsv track push``.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient, get_tracking_uri
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from tsvlib.atomic import atomic_write

from .run_record import FINISHED, RunRecord, TrackingError, experiment_for_runs, runs_by_content, send
from .views import prepare_view

log = logging.getLogger(__name__)

OUTBOX = Path(".tsv/outbox")
VARIABLE = "TSV_OUTBOX"
RECORD, FILES = "run.json", "files"
CANNOT_TAKE = (TrackingError, MlflowException, SQLAlchemyError, OSError)
"""What says that MLflow cannot take runs now (requests' exceptions are OSErrors)."""


@dataclass(frozen=True)
class Sent:
    """What became of one record."""

    record: RunRecord
    run_id: str
    new: bool


@dataclass(frozen=True)
class Outbox:
    """A folder of records."""

    folder: Path

    def put(self, record: RunRecord, files: Mapping[str, Path]) -> None:
        """Keep a record and copies of its files (path among the artifacts -> file)."""
        place = self._place(record)
        with self._locked():  # another process may be sending the same, and removes it then
            for name, file in files.items():
                target = place / FILES / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            (place / FILES).mkdir(parents=True, exist_ok=True)
            with atomic_write(place / RECORD) as out:  # last: a folder without it is none
                out.write(record.model_dump_json(indent=1).encode())

    def waiting(self) -> list[RunRecord]:
        """The records in it, oldest first."""
        found = sorted(self.folder.glob(f"*/{RECORD}"), key=lambda file: file.stat().st_mtime)
        return [RunRecord.model_validate_json(file.read_bytes()) for file in found]

    def push(self, client: MlflowClient | None = None) -> Iterator[Sent]:
        """Send every record, and remove it once it is there.

        Raises:
            TrackingError: MLflow cannot take them; those that it has not taken stay.
        """
        with self._locked():
            records = self.waiting()
            try:
                client = client or MlflowClient()
                for name in dict.fromkeys(record.experiment for record in records):
                    experiment = experiment_for_runs(client, name)
                    prepare_view(client, experiment)
                    known = runs_by_content(client, experiment)
                    for record in records:
                        if record.experiment == name:
                            place = self._place(record)
                            earlier = known.get(record.content, [])
                            run_id, new = send(client, experiment, record, place / FILES, earlier)
                            shutil.rmtree(place)
                            yield Sent(record, run_id, new)
            except CANNOT_TAKE as error:
                raise TrackingError(f"MLflow at {get_tracking_uri()} cannot take runs: {_reason(error)}") from error

    def _locked(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def _place(self, record: RunRecord) -> Path:
        return self.folder / f"{record.name}-{record.content}".replace("/", "_")


def default_outbox() -> Outbox:
    """The one of TSV_OUTBOX, else below the current folder."""
    return Outbox(Path(os.environ.get(VARIABLE, OUTBOX)))


def _reason(error: Exception) -> str:
    """The first line, or what to do where that line is obscure."""
    text = str(error)
    if "database is locked" in text:
        return "locked by another process. End that one; where many write at once, give MLflow a server or PostgreSQL."
    if "readonly database" in text or "read-only" in text:
        return "its database may not be written. Check who owns it."
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def finished_runs(experiment: str) -> dict[str, str]:
    """Content -> id of the runs that are there whole; none where MLflow does not answer."""
    try:
        client = MlflowClient()
        found = client.get_experiment_by_name(experiment)
        runs = runs_by_content(client, found) if found else {}
    except CANNOT_TAKE:
        return {}
    return {content: run.info.run_id for content, same in runs.items() for run in same if run.info.status == FINISHED}


def push_or_keep(outbox: Outbox) -> list[Sent]:
    """Send what can be sent; where MLflow cannot take it, say so and go on."""
    sent: list[Sent] = []
    try:
        for one in outbox.push():
            sent.append(one)
    except TrackingError as error:
        log.warning(
            "%s\n%d runs are kept in %s; send them with 'tsv track push'. Work goes on.",
            error, len(outbox.waiting()), outbox.folder,
        )  # fmt: skip
    return sent
