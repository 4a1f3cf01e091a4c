"""Merge and compress fine-tuned CLIP encoders with Task Singular Vectors (Gargiulo et al., CVPR 2025)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .archive import Archive as Archive
    from .archive import compress as compress
    from .archive import open_archive as open_archive
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import open_checkpoint as open_checkpoint
    from .errors import TSVError as TSVError
    from .interference import singular_task_interference as singular_task_interference
    from .key_policy import KeyPolicy as KeyPolicy
    from .merging import merge as merge
    from .merging import merge_matrix as merge_matrix
    from .polar import polar_factor as polar_factor
    from .singular_vectors import top_singular_triplets as top_singular_triplets

_HOME = {
    "Archive": "archive",
    "Checkpoint": "checkpoint",
    "KeyPolicy": "key_policy",
    "TSVError": "errors",
    "compress": "archive",
    "merge": "merging",
    "merge_matrix": "merging",
    "open_archive": "archive",
    "open_checkpoint": "checkpoint",
    "polar_factor": "polar",
    "singular_task_interference": "interference",
    "top_singular_triplets": "singular_vectors",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that ``import tsvlib`` alone stays light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
