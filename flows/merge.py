"""Merging: task vectors, their singular vectors, and one merged checkpoint.

``python -m flows.merge METHOD`` is the DVC stage; the method's parameters stand in params.yaml.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow

from tasks.blob import Blob
from tasks.fetch import fetch_checkpoint, fetch_images, fetch_model
from tasks.merge import factorise_task, measure_merge, merge_checkpoints
from tasks.models import Factorised, Made
from tasks.parts import content_digest, join_parts, merge_part
from tsvlib.alpha import searched
from tsvlib.checkpoint import atomic_write, open_checkpoint
from tsvlib.errors import MethodError
from tsvlib.key_policy import KeyPolicy
from tsvlib.methods import get_method
from tsvlib.parts import divide
from tsvlib.suite import Suite, load_suite

from .choices import CPU, DeviceName, MethodName, SuiteName
from .command import run
from .layout import candidate_folder
from .page import show_table
from .params import METHODS_OWN, MergeParameters, load_params
from .runners import CONFIGURED, Call, on_device, side_by_side, works_elsewhere
from .work import added, log_work, of_this_run

Wanted = tuple[str, dict[str, Any]]
"""A method and its parameters."""


def fetch_suite(suite: Suite) -> tuple[Blob, dict[str, Blob]]:
    """The base and the fine-tunes of a suite, fetched side by side."""
    uris = [suite.base_uri, *suite.checkpoints.values()]
    base, *fine_tuned = fetch_checkpoint.map(uris).result()
    return base, dict(zip(suite.tasks, fine_tuned, strict=True))


def merge_each(
    base: Blob,
    tasks: dict[str, Blob],
    wanted: Sequence[Wanted],
    key_policy: KeyPolicy | None = None,
    device: str = "cpu",
) -> list[Made]:
    """One merged checkpoint for each (method, parameters); on a cluster, the workers share the parts of all of them."""
    if works_elsewhere():
        return _merge_in_parts(base, tasks, wanted, key_policy, device)
    by_factors = [parameters for method, parameters in wanted if get_method(method).rank and device == CPU]
    factorised: list[Factorised] = []
    for rank_fraction in dict.fromkeys(parameters.get("rank_fraction") for parameters in by_factors):
        factorised += factorise_all(base, tasks, rank_fraction, key_policy)
    merge_one = on_device(merge_checkpoints, device)
    inputs = {"base": base, "tasks": tasks, "key_policy": key_policy, "device": device}
    calls = [(merge_one, inputs | {"method": name, "parameters": found}) for name, found in wanted]
    merged = side_by_side(calls, "candidates merged" if len(wanted) > 1 else "")
    return [
        of_this_run(made, factorised if get_method(name).rank else ())
        for made, (name, _) in zip(merged, wanted, strict=True)
    ]


def factorise_all(
    base: Blob, tasks: dict[str, Blob], rank_fraction: float | None, key_policy: KeyPolicy | None = None
) -> list[Factorised]:
    """Singular vectors of every task into the factor cache, a task at a time (its matrices run side by side)."""
    return [factorise_task(name, base, blob, len(tasks), rank_fraction, key_policy) for name, blob in tasks.items()]


def _merge_in_parts(
    base: Blob, tasks: dict[str, Blob], wanted: Sequence[Wanted], key_policy: KeyPolicy | None, device: str
) -> list[Made]:
    files = {"": base} | tasks
    digests = dict(zip(files, side_by_side([(content_digest, {"file": file}) for file in files.values()]), strict=True))
    specs = open_checkpoint(base.path).specs
    calls: list[Call] = []
    owners: list[int] = []
    for owner, (name, parameters) in enumerate(wanted):
        method = get_method(name)
        for names in divide(specs, len(tasks), method, method.parse(parameters), key_policy):
            inputs = {"base": base, "tasks": tasks, "digests": digests, "method": name, "parameters": parameters}
            inputs |= {"names": names, "key_policy": key_policy, "device": device}
            calls.append((on_device(merge_part, device), inputs))
            owners.append(owner)
    parts: list[list[Made]] = [[] for _ in wanted]
    for owner, part in zip(owners, side_by_side(calls, "parts merged"), strict=True):
        parts[owner].append(part)
    joined = side_by_side([(join_parts, {"parts": [part.blob for part in mine]}) for mine in parts])
    return [_with_costs_of(mine, whole) for mine, whole in zip(parts, joined, strict=True)]


def _with_costs_of(parts: list[Made], whole: Made) -> Made:
    """The seconds and the work of all workers together, and the most memory that one of them took."""
    every = [of_this_run(one) for one in (whole, *parts)]
    work = added(one.work for one in every)
    seconds, peak = sum(one.seconds for one in every), max(one.peak_rss_bytes for one in every)
    return whole.model_copy(update={"seconds": seconds, "peak_rss_bytes": peak, "work": work})


@flow(name="merge", task_runner=CONFIGURED)
def merge_suite(
    suite: SuiteName,
    method: MethodName = "tsv-m",
    parameters: MergeParameters = METHODS_OWN,
    device: DeviceName = CPU,
) -> Made:
    """Merge a suite's fine-tunes by one method.

    Args:
        suite: a packaged suite, or the path of a suite file.
        method: how the fine-tunes are merged.
        parameters: of the method; what is not set has the method's own default.
        device: of the matrix work; on any but the CPU, one merge at a time.
    """
    settings = parameters.checked(method)
    loaded = load_suite(suite)
    base, tasks = fetch_suite(loaded)
    curve: dict[float, float] = {}
    if searched(settings):
        from tasks.evaluate import choose_parameters  # loads open_clip, which no other merge needs

        images, model = fetch_images(loaded, "validation"), fetch_model(loaded)
        chosen = choose_parameters(loaded, method, settings, base, tasks, model, images)
        settings, curve = chosen.parameters, chosen.alpha_curve
    (made,) = merge_each(base, tasks, [(method, settings)], loaded.key_policy, device)
    made = made.model_copy(update={"parameters": settings, "alpha_curve": curve})
    if get_method(method).rank:
        made = made.model_copy(
            update={"kept": measure_merge(base, tasks, kept_share(method, settings), loaded.key_policy)}
        )
    show_made(f"{method} of {loaded.name}", made, list(tasks))
    log_work(f"{method} of {loaded.name}", made)
    return made


def kept_share(method: str, parameters: dict[str, Any]) -> float | None:
    """Share of each matrix's singular triplets that a method by factors keeps; None: 1 / tasks."""
    return getattr(get_method(method).parse(parameters), "rank_fraction", 1.0)


def show_made(title: str, made: Made, tasks: list[str]) -> None:
    """What was made of what, on the run's page."""
    row = {
        "tasks": ", ".join(tasks),
        **made.parameters,
        "digest": made.blob.digest[:12],
        "MB": round(made.blob.size / 1e6, 2),
        "seconds": round(made.seconds, 2),
        "file": str(made.blob.path),
    }
    show_table([row], key="made", title=title)


def write_candidate(made: Made, folder: Path, name: str) -> None:
    """Give a made file its name among a suite's candidates, with what it cost beside it."""
    made.blob.link(folder / f"{name}.safetensors")
    with atomic_write(folder / f"{name}.json") as file:
        file.write((json.dumps(made.record(), indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    (method,) = sys.argv[1:]

    def main() -> None:
        params = load_params()
        if method not in params.merge:
            raise MethodError(f"params.yaml: merge has no {method!r}. There are: {', '.join(params.merge)}.")
        params.merge[method].checked(method)
        made = merge_suite(params.suite, method, params.merge[method], params.device)
        write_candidate(made, candidate_folder(load_suite(params.suite).name), method)

    run(main)
