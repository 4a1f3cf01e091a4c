"""Work on many parameters side by side: threads, each with one BLAS thread, so that none waits on another's barrier."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Generator[tuple[Item, Result], None, None]:
    """(item, work(item)) in the order of the items; few results wait at a time. Closing it ends its threads.

    Args:
        work: called on a thread of its own; its linear algebra runs on one core.
        items: what to work on.
        threads: items worked on at a time; by default one per available core.
    """
    threads = threads or len(os.sched_getaffinity(0))
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    with single_threaded_blas(), ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > 2 * threads:
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        finally:
            for _, result in waiting:
                result.cancel()


class _SingleThreadedBlas:
    """The libraries' setting is the whole process's: the first user changes it, the last one changes it back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._setting = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._setting.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1)
                self._setting.enter_context(threadpool_limits(1))
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._setting.close()


single_threaded_blas = _SingleThreadedBlas()
"""One thread in every linear algebra library for the time being; also where several threads ask for it at once."""
