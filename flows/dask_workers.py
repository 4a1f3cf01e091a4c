"""Dask: the task runner, whose workers enter the flow's folder as they join."""

from __future__ import annotations

import os
from typing import Self

from prefect_dask import DaskTaskRunner

from tasks.dask_plugin import EnterPlace
from tasks.place import Place

from .runners import RunnerError


class _DaskRunner(DaskTaskRunner):
    place: Place

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.client.register_plugin(EnterPlace(self.place))
        except OSError as error:  # Dask's way to tell that nothing answers
            raise RunnerError(f"runner = 'dask': no cluster answers at {self.address}: {error}") from error
        return self


def make_dask_runner(address: str, place: Place) -> DaskTaskRunner:
    """A runner on the scheduler at ``HOST:PORT``; on a local cluster of one process a core where that is empty."""
    if address:
        runner = _DaskRunner(address=f"tcp://{address}")
    else:
        cores = len(os.sched_getaffinity(0))
        runner = _DaskRunner(cluster_kwargs={"n_workers": cores, "threads_per_worker": 1, "dashboard_address": None})
    runner.place = place
    return runner
