"""Running a flow as a command: a server to report to, clean messages, exit status 2 for what the user can mend.

Where the local server dies meanwhile, Prefect itself would try each request for a minute, and then give the flow up, or
not even report it. So the command is started again, with a new server; finished tasks are found in the cache.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import httpx

from tsvlib.errors import TSVError
from tsvlib.exit_status import clean_exit

log = logging.getLogger(__name__)

RETRIES = 2  # of a request to the local server, after 2 and 4 seconds
ATTEMPTS, ATTEMPT_VARIABLE = 3, "TSV_ATTEMPT"


class _CleanErrors(logging.Filter):
    """Prefect logs every exception with its traceback; the user's mistakes and a lost server need a message only."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], TSVError | httpx.TransportError):
            record.exc_info = None
        return True


def run(command: Callable[[], Any]) -> None:
    """Call ``command``, which runs a flow, with a Prefect server to report to."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("flows").setLevel(logging.INFO)
    for chatty in ("httpx", "mlflow"):  # a line for each request to Prefect's server, for each table of a new database
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with clean_exit():
        from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        from .server import answers, is_local, server_url

        url = server_url()
        settings: dict[Any, Any] = {PREFECT_API_URL: url}
        if is_local(url):  # it is there or it is not: no need to wait a minute for each request, as the default is
            settings[PREFECT_CLIENT_MAX_RETRIES] = RETRIES
        for name in ("prefect.flow_runs", "prefect.task_runs"):
            logging.getLogger(name).addFilter(_CleanErrors())
        try:
            with temporary_settings(settings):
                command()
        except TSVError:
            raise
        except Exception:
            if is_local(url) and not answers(url):
                _start_again()
            raise


def _start_again() -> None:
    """Become a fresh process of the same command, which starts a server anew; a few times at most."""
    attempt = int(os.environ.get(ATTEMPT_VARIABLE, "0")) + 1
    if attempt <= ATTEMPTS:
        log.warning("the local Prefect server died; starting it again and going on: what is finished is kept.")
        os.execve(sys.executable, sys.orig_argv, {**os.environ, ATTEMPT_VARIABLE: str(attempt)})
