"""What the verbs print: results as text or JSON on standard output, progress on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars

from ..cache import Cache, describe_work
from ..progress import Progress
from .options import Printing

log = logging.getLogger("tsvlib")

SECONDS_BETWEEN_LINES = 10


def show(result: dict[str, Any], text: Any, printing: Printing) -> None:
    """Print a result: ``text`` (a string or a rich renderable) for people, ``result`` with --json."""
    if printing.json:
        sys.stdout.write(json.dumps(result, indent=2, default=str) + "\n")
    elif not printing.quiet:
        Console(soft_wrap=True).print(text)


def work_done(cache: Cache | None) -> str:
    """What of a merge was found in the cache, as the end of a sentence; nothing without a cache."""
    told = describe_work(cache.work()) if cache else ""
    return f"; from the cache: {told}" if told else ""


@contextmanager
def progress(title: str, printing: Printing | None = None) -> Iterator[Progress]:
    """A bar with count and time left on a terminal, a log line every ten seconds elsewhere, nothing with --quiet."""
    if printing and printing.quiet:
        yield lambda what, done, total: None
    elif sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with ProgressBars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
            bar = bars.add_task(title, total=None)
            yield lambda what, done, total: bars.update(bar, completed=done, total=total, description=f"{title} {what}")
    else:
        yield _logged(title)


def _logged(title: str) -> Progress:
    start = last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - start) / done * (total - done)
            log.info("%s: %s (%d of %d, %.0f s left)", title, what, done, total, left)

    return report
