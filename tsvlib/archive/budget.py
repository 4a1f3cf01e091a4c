"""Byte budgets as people write them: ``10%``, ``1.5 MB``, ``1500000``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import MethodError

Weighting = Literal["energy", "task", "matrix", "accuracy"]
"""What the energy of a singular triplet counts for: as it is, relative to its task's or its matrix's, or times how much
its parameter matters to the task's answers (:mod:`tsvlib.sensitivity`)."""

_UNITS = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_WRITTEN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*(%|[kKMG]?i?B?)\s*")


@dataclass(frozen=True)
class Budget:
    """Bytes that a file may take."""

    text: str
    nbytes: int
    of: int
    """Bytes of the checkpoints that go into it."""

    @property
    def share(self) -> float:
        """Of the checkpoints' bytes."""
        return self.nbytes / self.of


def parse_budget(written: str | float, of: int) -> Budget:
    """A number of bytes, or of per cent of ``of`` bytes.

    Raises:
        MethodError: it is neither, or not above 0.
    """
    found = _WRITTEN.fullmatch(str(written))
    if not found or found[2] not in {*_UNITS, "%"} or not float(found[1]) > 0:
        raise MethodError(f"budget = {written!r}: write bytes, such as 1500000 or '1.5 MB', or a share, such as '10%'.")
    number, unit = float(found[1]), found[2]
    nbytes = of * number / 100 if unit == "%" else number * _UNITS[unit]
    return Budget(str(written), int(nbytes), of)


def check_weighting(weighting: str) -> None:
    """Raise a MethodError if there is no such weighting."""
    if weighting not in get_args(Weighting):
        raise MethodError(f"weighting = {weighting!r}: choose one of {', '.join(get_args(Weighting))}.")
