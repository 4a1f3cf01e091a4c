"""Set a Prefect server up for this project: work pool, concurrency limit, automation, and what prefect.yaml deploys.

``python -m flows.deploy``, from the project's folder, with PREFECT_API_URL set; again after each change.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from .runners import ACCELERATOR

log = logging.getLogger(__name__)

POOL = "local"
LOST = "tsvlib: runs without a heartbeat have crashed"
SECONDS_TO_LOSS = 90
_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ["Completed", "Failed", "Cancelled", "Crashed"]


def deploy() -> None:
    """Make what is missing, and deploy everything anew."""
    with get_client(sync_client=True) as client:
        _make_pool(client)
        _limit_accelerator(client)
    _watch_heartbeats()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(command, check=True, env={**os.environ, "PWD": str(Path.cwd())})


def _make_pool(client: SyncPrefectClient) -> None:
    try:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        log.info("work pool %r made", POOL)
    except ObjectAlreadyExists:
        log.info("work pool %r is there", POOL)


def _limit_accelerator(client: SyncPrefectClient) -> None:
    """One task at a time on the accelerator, unless a limit was set by hand before."""
    try:
        found = client.read_concurrency_limit_by_tag(ACCELERATOR)
        log.info("tasks tagged %r: %d at a time", ACCELERATOR, found.concurrency_limit)
    except ObjectNotFound:
        client.create_concurrency_limit(tag=ACCELERATOR, concurrency_limit=1)
        log.info("tasks tagged %r: one at a time", ACCELERATOR)


def _watch_heartbeats() -> None:
    """A run whose process was killed says nothing more; call it crashed, so that it can be run again."""
    trigger = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        for_each={"prefect.resource.id"},
        after={_HEARTBEAT},
        expect={_HEARTBEAT, *(f"prefect.flow-run.{state}" for state in _ENDS)},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SECONDS_TO_LOSS),
    )
    crashed = ChangeFlowRunState(state=StateType.CRASHED, message="Its process gives no sign of life any more.")
    automation = Automation(name=LOST, trigger=trigger, actions=[crashed])
    try:
        Automation.read(name=LOST)  # type: ignore[unused-coroutine]  # it is one only within an event loop
        log.info("automation %r is there", LOST)
    except ValueError:
        automation.create()
        log.info("automation %r made", LOST)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    deploy()
