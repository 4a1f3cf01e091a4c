"""Where the tasks of a flow run: one setting, ``runner`` of params.yaml, or $TSV_RUNNER before it.

========================  ==============================================================================
``threads``               in the flow's own process (the default)
``processes://4``         in 4 processes on this machine
``dask://HOST:PORT``      on the Dask cluster whose scheduler is there; ``dask`` alone makes a local one
``ray://HOST:PORT``       on the Ray cluster whose head is there; ``ray`` alone makes a local one
========================  ==============================================================================

Workers share the flow's folder and store by path: they must see both under the same name (docs/deployment.md).
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml
from prefect import Task
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from tasks.place import Place
from tasks.progress import progress_artifact
from tsvlib.cli.options import Printing
from tsvlib.cli.printing import progress
from tsvlib.errors import TSVError, did_you_mean
from tsvlib.progress import Progress

log = logging.getLogger(__name__)

VARIABLE = "TSV_RUNNER"
DEFAULT = "threads"

ACCELERATOR = "accelerator"
"""Tag of task runs that use one; 'python -m flows.deploy' limits how many of them run at a time, over all flows."""

_chosen: ContextVar[str | None] = ContextVar("chosen_runner", default=None)


class RunnerError(TSVError):
    """The setting of the runner is wrong, or what it needs is not installed."""


AnyTask = Task[..., Any]
Factory = Callable[[str], TaskRunner[Any]]
RUNNERS: dict[str, Factory] = {}


def runner(scheme: str) -> Callable[[Factory], Factory]:
    """Register what makes the task runner of ``SCHEME`` or ``SCHEME://PLACE`` from the place."""

    def register(factory: Factory) -> Factory:
        RUNNERS[scheme] = factory
        return factory

    return register


def make_runner(setting: str) -> TaskRunner[Any]:
    """The task runner that a setting asks for.

    Raises:
        RunnerError: no such runner, a wrong place, or its package is not installed.
    """
    scheme, _, place = setting.partition("://")
    if scheme not in RUNNERS:
        raise RunnerError(f"runner = {setting!r}: there is no {scheme!r}.{did_you_mean(scheme, RUNNERS)}")
    return RUNNERS[scheme](place)


@runner(DEFAULT)
def _threads(place: str) -> TaskRunner[Any]:
    if place:
        raise RunnerError(f"runner = '{DEFAULT}://{place}': '{DEFAULT}' takes no place; one thread a core is used.")
    return ThreadPoolTaskRunner()


@runner("processes")
def _processes(place: str) -> TaskRunner[Any]:
    if not place.isdecimal() or int(place) < 1:
        raise RunnerError(f"runner = 'processes://{place}': write the number of processes, as in processes://4.")
    return ProcessPoolTaskRunner(max_workers=int(place))


@runner("dask")
def _dask(place: str) -> TaskRunner[Any]:
    _need("dask", "prefect_dask")
    from .dask_workers import make_dask_runner

    return make_dask_runner(place, Place.of_this_process())


@runner("ray")
def _ray(place: str) -> TaskRunner[Any]:
    _need("ray", "prefect_ray")
    from .ray_workers import make_ray_runner

    return make_ray_runner(place, Place.of_this_process())


def _need(extra: str, module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise RunnerError(f"runner = {extra!r}: {error}. Install it: pip install 'tsvlib[{extra}]'.") from error


class _ConfiguredTaskRunner(ThreadPoolTaskRunner):
    """Stands in a flow's declaration for the runner that the setting names when a run of it starts."""

    def duplicate(self) -> TaskRunner[Any]:  # type: ignore[override]
        """What Prefect calls for a runner for one flow run."""
        return make_runner(configured_runner())


CONFIGURED = cast("TaskRunner[PrefectFuture[Any]]", _ConfiguredTaskRunner())
"""For ``@flow(task_runner=CONFIGURED)``: its tasks run where the setting says."""


def configured_runner() -> str:
    """The setting: $TSV_RUNNER, else what :func:`using_runner` says, else ``runner`` of params.yaml."""
    return os.environ.get(VARIABLE) or _chosen.get() or _in_file(Path("params.yaml")) or DEFAULT


def _in_file(file: Path) -> str | None:
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return content.get("runner") if isinstance(content, dict) else None


@contextmanager
def using_runner(setting: str | None) -> Iterator[None]:
    """Flows that start within the block use this runner."""
    token = _chosen.set(setting)
    try:
        yield
    finally:
        _chosen.reset(token)


def on_device(task: AnyTask, device: str) -> AnyTask:
    """A task as it is to run on a device: on any but the CPU, it counts among those that share the accelerator."""
    return task if device == "cpu" else task.with_options(tags={*task.tags, ACCELERATOR})


def works_elsewhere() -> bool:
    """Whether the tasks that the present flow submits run in other processes."""
    context = FlowRunContext.get()
    return context is not None and not isinstance(context.task_runner, ThreadPoolTaskRunner)


Call = tuple[AnyTask, Mapping[str, Any]]
"""A task and its arguments."""


def side_by_side(calls: Sequence[Call], title: str = "") -> list[Any]:
    """Results of several calls of tasks, in their order; with a title, page and terminal show how many are done.

    On a cluster the calls are handed out all at once. In the flow's own process they run one after another, because
    each of these tasks uses every core by itself.
    """
    if works_elsewhere():
        pending = [task.submit(**arguments).result for task, arguments in calls]
    else:
        pending = [partial(task, **arguments) for task, arguments in calls]
    results = []
    with _shown(title) if title else nullcontext(_silent) as report:
        for done, result in enumerate(pending, start=1):
            results.append(result())
            task, arguments = calls[done - 1]
            report(str(arguments.get("name", task.name)), done, len(calls))
    return results


@contextmanager
def _shown(title: str) -> Iterator[Progress]:
    """On the run's page, and as a bar on the terminal or lines in the log."""
    quiet = Printing(quiet=not log.isEnabledFor(logging.INFO))
    with progress_artifact(title) as on_page, progress(title, quiet) as on_terminal:

        def report(what: str, done: int, total: int) -> None:
            on_page(what, done, total)
            on_terminal(what, done, total)

        yield report


def _silent(what: str, done: int, total: int) -> None:
    pass
