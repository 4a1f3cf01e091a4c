"""Running a flow as a command: a server to report to, clean messages, exit status 2 for what the user can mend."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from tsvlib.errors import TSVError
from tsvlib.exit_status import clean_exit


class _CleanUserErrors(logging.Filter):
    """Prefect logs every exception with its traceback; the user's mistakes need only their message."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], TSVError):
            record.exc_info = None
        return True


def run(command: Callable[[], Any]) -> None:
    """Call ``command``, which runs a flow, with a Prefect server to report to."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("flows").setLevel(logging.INFO)
    with clean_exit():
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from .server import server_url

        with temporary_settings({PREFECT_API_URL: server_url()}):
            for name in ("prefect.flow_runs", "prefect.task_runs"):
                logging.getLogger(name).addFilter(_CleanUserErrors())
            command()
