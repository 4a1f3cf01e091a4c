"""The analyses of Gargiulo et al. 2025 on any suite: each gives a tidy table and a plot. One small file each.

A new study is one new file in this folder: it is found by its ``@study`` decorator, nothing else needs to change.
"""

from __future__ import annotations

import importlib
import pkgutil

from .registry import Options, Outcome, Study, get_study, study, study_names
from .subject import Subject

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Options", "Outcome", "Study", "Subject", "get_study", "study", "study_names"]
