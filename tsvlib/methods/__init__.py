"""Merge methods: pure functions from the deltas of one parameter to the merged delta. One small file each.

A new method is one new file in this folder: it is found by its ``@method`` decorator, nothing else needs to change.
"""

from __future__ import annotations

import importlib
import pkgutil

from .registry import Method, MethodParameters, get_method, method, method_names

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Method", "MethodParameters", "get_method", "method", "method_names"]
