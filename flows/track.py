"""``tsv track``: what waits to be sent to MLflow, and sending it."""

from __future__ import annotations

from cyclopts import App
from mlflow import get_tracking_uri

from tasks.outbox import default_outbox
from tasks.run_record import TrackingError
from tsvlib.cli.options import Printing
from tsvlib.cli.printing import show
from tsvlib.errors import SettingError

track = App(name="track", help="Runs that MLflow could not take when they were made.")


@track.command
def status(*, printing: Printing | None = None) -> None:
    """List what waits."""
    outbox = default_outbox()
    waiting = outbox.waiting()
    lines = [f"{record.experiment}: {record.name}" for record in waiting] or ["nothing waits"]
    result = {"folder": str(outbox.folder), "waiting": [record.model_dump() for record in waiting]}
    show(result, "\n".join(lines), printing or Printing())


@track.command
def push(*, printing: Printing | None = None) -> None:
    """Send what waits to the tracking server of MLFLOW_TRACKING_URI, by default the database mlflow.db."""
    outbox = default_outbox()
    sent = []
    try:
        for one in outbox.push():
            sent.append(one)
    except TrackingError as error:
        raise SettingError(f"{error}\n{len(sent)} runs were sent, {len(outbox.waiting())} still wait.") from error
    lines = [f"{one.record.experiment}: {one.record.name} {'sent' if one.new else 'was there'}" for one in sent]
    result = {"sent": [{"run_id": one.run_id, "new": one.new, "candidate": one.record.name} for one in sent]}
    show(result, "\n".join(lines or [f"nothing waits for {get_tracking_uri()}"]), printing or Printing())
