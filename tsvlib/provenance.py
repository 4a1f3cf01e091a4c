"""Where a merged file or an archive comes from: written into its header, and shown."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint
from .git import git_commit
from .names import naming_of
from .tensors import DTYPE_NAMES

_PROGRAM = Path(__file__).parent


def describe_inputs(base: Checkpoint, tasks: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """What an artifact's header says of its inputs and of the program: content digests, sources, versions, commit."""
    described: dict[str, Any] = {
        "base": {"digest": base.digest},
        "tasks": {task: tasks[task].digest for task in sorted(tasks)},
        "sources": {"base": base.source, "tasks": {task: tasks[task].source for task in sorted(tasks)}},
        "model": base.about,
        "versions": {"tsvlib": version("tsvlib"), "torch": torch.__version__, "python": sys.version.split()[0]},
    }
    if commit := git_commit(_PROGRAM):
        described["commit"] = commit
    return described


def inspect_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a file holds and where it comes from; reads every value once, for the digest."""
    dtypes: dict[str, int] = {}
    for spec in checkpoint.specs.values():
        dtypes[DTYPE_NAMES[spec.dtype]] = dtypes.get(DTYPE_NAMES[spec.dtype], 0) + 1
    return {
        "source": checkpoint.source,
        "path": str(checkpoint.path) if checkpoint.path else None,
        "digest": checkpoint.digest,
        "bytes": checkpoint.nbytes,
        "tensors": len(checkpoint),
        "parameters": sum(torch.Size(spec.shape).numel() for spec in checkpoint.specs.values()),
        "dtypes": dtypes,
        "names": naming_of(checkpoint),
        "provenance": checkpoint.metadata,
    }
