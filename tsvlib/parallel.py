"""Work on many parameters side by side: threads, each with one BLAS thread, so that none waits on another's barrier."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) in the order of the items; few results wait at a time.

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


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One thread in every linear algebra library for the time being."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
