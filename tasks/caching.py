"""Caching by content: a task runs again only when its code, or the content of what it is given, has changed.

Prefect's own policies are not enough here: INPUTS alone has no task in it, TASK_SOURCE misses helpers, and both
would hash paths, not contents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from pydantic import BaseModel

from tsvlib.versions import arithmetic, source_digest

from .blob import Blob


@dataclass(kw_only=True)
class ContentKey(CachePolicy):
    """Task, its source, the sources of named modules, the libraries, and its inputs, blobs by their digest."""

    modules: tuple[str, ...]

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str:
        content = {
            "task": task_ctx.task.task_key,
            "code": source_digest((task_ctx.task.fn.__module__, *self.modules)),
            "arithmetic": arithmetic(),
            "inputs": {name: _content(value) for name, value in sorted(inputs.items())},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _content(value: Any) -> Any:
    """A value as JSON that depends on content alone."""
    if isinstance(value, Blob):
        return value.digest
    if isinstance(value, BaseModel):
        return {name: _content(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {str(key): _content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_content(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a cached task cannot take a {type(value).__name__}: pass a Blob, a model or plain values")


def cached_task(*modules: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``prefect.task`` with results kept, and found again by content.

    Args:
        modules: whose source the result depends on, beside the task's own module.
        options: further options of ``prefect.task``.
    """
    return task(
        cache_policy=ContentKey(modules=modules),
        persist_result=True,
        result_serializer="json",
        log_prints=False,
        **options,
    )
