"""How long work tells what it has done."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what was just done, how much is done, how much there is in all; 0 where that is unknown)."""
