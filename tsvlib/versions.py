"""What the code and the libraries under it were, for keys of cached results."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy  # noqa: F401 - its BLAS has to be loaded before it can be asked
import torch
from threadpoolctl import threadpool_info


@cache
def source_digest(modules: tuple[str, ...]) -> str:
    """SHA-256 over the source of modules, and of every module of those that are packages."""
    digest = hashlib.sha256()
    for name in sorted(modules):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        origin = Path(spec.origin)
        for file in sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@cache
def arithmetic() -> str:
    """What decides how sums are rounded, beside the code: versions of the libraries, and the kind of processor."""
    libraries = [f"{name} {version(name)}" for name in ("numpy", "scipy", "torch")]
    processors = {one["architecture"] for one in threadpool_info() if "architecture" in one}
    return ", ".join([*libraries, *sorted(processors), torch.backends.cpu.get_cpu_capability()])
