"""A new checkpoint appeared: look into a folder now and then, and merge what is there whenever its content is new.

The look is cheap, and runs on a schedule (prefect.yaml). What it finds decides the key under which it asks the server
for a merge: the server keeps one run a key, so the same checkpoints never start a second merge, whoever looks, how
often, and under whatever name a checkpoint stands.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Annotated, Any

from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.deployments import run_deployment
from pydantic import Field

from tasks.arrivals import WHOLE, Arrival, find_arrivals
from tasks.fetch import fetch_checkpoint
from tasks.models import Made
from tasks.parts import content_digest

from .choices import CPU, CheckpointURI, DeviceName, MethodName
from .layout import candidate_folder
from .merge import merge_each, show_made, write_candidate
from .page import show_table
from .params import METHODS_OWN, MergeParameters
from .runners import CONFIGURED, side_by_side

log = logging.getLogger(__name__)

DEPLOYMENT = "merge-checkpoints/merge-checkpoints"


@flow(name="merge-checkpoints", task_runner=CONFIGURED)
def merge_checkpoints(
    base: CheckpointURI,
    tasks: dict[str, CheckpointURI],
    method: MethodName = "tsv-m",
    parameters: MergeParameters = METHODS_OWN,
    name: str = "arrivals",
    device: DeviceName = CPU,
) -> Made:
    """Merge checkpoints named one by one; the result stands in ``models/NAME/METHOD.safetensors``.

    Args:
        base: what the tasks were fine-tuned from.
        tasks: task -> its fine-tuned checkpoint.
        method: how they are merged.
        parameters: of the method; what is not set has the method's own default.
        name: of the folder for the result.
        device: of the matrix work; on any but the CPU, one merge at a time.
    """
    settings = parameters.checked(method)
    start, *fine_tuned = fetch_checkpoint.map([base, *tasks.values()]).result()
    (made,) = merge_each(start, dict(zip(tasks, fine_tuned, strict=True)), [(method, settings)], device=device)
    made = made.model_copy(update={"parameters": settings})
    write_candidate(made, candidate_folder(name), method)
    show_made(f"{method} of {len(tasks)} checkpoints", made, list(tasks))
    return made


@flow(name="watch")
def watch_folder(
    base: CheckpointURI,
    folder: Annotated[str, Field(min_length=1, description="path or URI of the folder where checkpoints appear")],
    method: MethodName = "tsv-m",
    parameters: MergeParameters = METHODS_OWN,
    settle_seconds: Annotated[
        float, Field(ge=0, description="a file that changed within this time is left alone")
    ] = 30,
    name: str = "arrivals",
) -> bool:
    """Start a merge of all checkpoints in a folder if their content was not merged before; tells whether it did.

    Args:
        base: what the checkpoints were fine-tuned from; it may stand in the same folder.
        folder: where they appear; each file is a task, named by its stem.
        method: how they are merged.
        parameters: of the method; what is not set has the method's own default.
        settle_seconds: a file that changed within this time is taken to be still growing.
        name: of the folder for the result, below ``models``.
    """
    parameters.checked(method)
    arrivals = find_arrivals(folder, base, settle_seconds)
    whole = {one.task: one.uri for one in arrivals if one.state == WHOLE}
    started = bool(whole) and _start_merge(base, whole, method, parameters, name)
    show_table([_shown(one) for one in arrivals] or [{"folder": folder, "state": "empty"}], "arrivals", folder)
    log.info("%s: %d whole of %d; %s", folder, len(whole), len(arrivals), "merge started" if started else "nothing new")
    return started


def _start_merge(base: str, checkpoints: dict[str, str], method: str, parameters: MergeParameters, name: str) -> bool:
    files = [fetch_checkpoint(uri) for uri in (base, *checkpoints.values())]
    start, *digests = side_by_side([(content_digest, {"file": file}) for file in files])
    key = _key(start, digests, method, parameters.given())
    with get_client(sync_client=True) as client:
        known = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[key]))
        if client.read_flow_runs(flow_run_filter=known):
            return False
    unique = {digest: task for task, digest in sorted(zip(checkpoints, digests, strict=True), reverse=True)}
    wanted = {
        "base": base,
        "tasks": {task: checkpoints[task] for task in sorted(unique.values())},
        "method": method,
        "parameters": parameters.given(),
        "name": name,
    }
    run_deployment(DEPLOYMENT, parameters=wanted, idempotency_key=key, timeout=0, as_subflow=False)
    return True


def _key(base: str, digests: list[str], method: str, parameters: dict[str, Any]) -> str:
    """Of what is to be merged and how; the same for the same content under other names."""
    content = json.dumps([base, sorted(set(digests)), method, parameters], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _shown(arrival: Arrival) -> dict[str, Any]:
    return {"task": arrival.task, "state": arrival.state, "MB": round(arrival.size / 1e6, 2), "uri": arrival.uri}
