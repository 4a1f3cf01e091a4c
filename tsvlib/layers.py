"""Where in a model a matrix stands: in which of the numbered layers, and what it is there."""

from __future__ import annotations

import re
from typing import NamedTuple


class Place(NamedTuple):
    """Where in a model a matrix stands."""

    layer: int | None
    """None outside of the numbered layers."""
    kind: str
    """Its name without the layer's number."""


def place_of(key: str) -> Place:
    """Of a matrix by its name, as open_clip, Hugging Face and others that number their layers write it."""
    before, number, after = re.fullmatch(r"(?:(.*?\.)?(\d+)\.)?(.*)", key).groups()  # type: ignore[union-attr]
    kind = re.sub(r"[._]weight(?=$|\[)", "", after)
    if number is None:
        return Place(None, kind)
    tower = "text " if before and not before.startswith(("visual.", "vision", "model.visual.")) else ""
    return Place(int(number), tower + kind)
