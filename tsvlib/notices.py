"""Warnings, so told that a cached result can repeat those of its computation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .errors import TSVWarning

_withheld: ContextVar[list[str] | None] = ContextVar("withheld", default=None)


def warn(message: str) -> None:
    """Issue a TSVWarning, or withhold it where somebody asked for that."""
    if (withheld := _withheld.get()) is not None:
        withheld.append(message)
    else:
        warnings.warn(message, TSVWarning, stacklevel=3)


@contextmanager
def withheld_warnings() -> Iterator[list[str]]:
    """The messages of what this thread warns of meanwhile, which is not told to anybody else."""
    messages: list[str] = []
    token = _withheld.set(messages)
    try:
        yield messages
    finally:
        _withheld.reset(token)
