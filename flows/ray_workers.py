"""Ray: the task runner, whose workers enter the flow's folder before they run a task."""

from __future__ import annotations

import socket
from typing import Any, Self

from prefect_ray import RayTaskRunner

from tasks.place import Place, enter_described

from .runners import RunnerError

SECONDS_TO_ANSWER = 10


class _RayRunner(RayTaskRunner):
    def __enter__(self) -> Self:
        try:
            if self.address:  # Ray itself would try for minutes
                host, _, port = self.address.partition(":")
                socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
            return super().__enter__()
        except (OSError, RuntimeError, ValueError) as error:
            raise RunnerError(
                f"runner = 'ray://{self.address or ''}': no cluster could be had there: {error}. Name the head's port "
                "(6379 by default), and run the flow on a machine of the cluster ('ray start --address HOST:PORT')."
            ) from error

    @staticmethod
    def _run_prefect_task(*arguments: Any, **named: Any) -> Any:
        enter_described()
        return RayTaskRunner._run_prefect_task(*arguments, **named)


def make_ray_runner(address: str, place: Place) -> RayTaskRunner:
    """A runner on the cluster whose head is at ``HOST:PORT``; on a local one where that is empty.

    The flow's machine has to be one of the cluster. Ray's other way in, its client server, is not used: forking from
    threads that use gRPC, it often dies as it starts.
    """
    return _RayRunner(address=address or None, init_kwargs={"runtime_env": {"env_vars": place.described()}})
