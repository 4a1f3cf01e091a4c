"""``tsv cache``: what the store holds, and keeping it in bounds."""

from __future__ import annotations

import re
import time
from typing import Any

from cyclopts import App
from rich.table import Table

from ..errors import CheckpointError, SettingError
from ..store import default_store
from ..upkeep import Kept, kept
from ..upkeep import prune as prune_store
from ..upkeep import verify as verify_store
from .options import Printing
from .printing import progress, show

cache = App(name="cache", help="Look after the store: fetched files, factors, merged layers, results of flows.")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@cache.command(name="ls")
def list_kept(*, printing: Printing | None = None) -> None:
    """Say what the store holds: how many of each kind, how large, when used."""
    store = default_store()
    kinds: dict[str, list[Kept]] = {}
    for one in kept(store):
        kinds.setdefault(" + ".join(one.kinds), []).append(one)
    rows = {
        kind: {"count": len(found), "bytes": sum(one.nbytes for one in found), "last_used": found[-1].used}
        for kind, found in sorted(kinds.items())
    }
    table = Table("kind", "count", "bytes", "last used", title=str(store.root), title_justify="left")
    for kind, row in rows.items():
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["last_used"]))
        table.add_row(kind, f"{row['count']:,}", f"{row['bytes']:,}", day)
    total = sum(int(row["bytes"]) for row in rows.values())
    table.add_section()
    table.add_row("all", f"{sum(int(row['count']) for row in rows.values()):,}", f"{total:,}", "")
    show({"store": str(store.root), "kinds": rows, "bytes": total}, table, printing or Printing())


@cache.command
def prune(*, max_size: str, printing: Printing | None = None) -> None:
    """Remove the least recently used until the rest is no larger than a size.

    Safe beside running merges: what a running process has used stays.

    Args:
        max_size: bytes, or with a unit: 500MB, 2GB.
    """
    removed = prune_store(default_store(), parse_size(max_size))
    text = (
        f"removed {removed.blobs:,} files, {removed.nbytes:,} bytes; "
        f"{removed.left_blobs:,} files, {removed.left_nbytes:,} bytes are left"
    )
    if removed.left_nbytes > parse_size(max_size):
        text += f", {removed.in_use_nbytes:,} of them in use by running processes"
    result: dict[str, Any] = {
        "removed": removed.blobs, "removed_bytes": removed.nbytes, "left": removed.left_blobs,
        "left_bytes": removed.left_nbytes, "in_use_bytes": removed.in_use_nbytes,
    }  # fmt: skip
    show(result, text + ".", printing or Printing())


@cache.command
def verify(*, printing: Printing | None = None) -> None:
    """Read everything that the store holds and remove what is damaged, so that it is made anew.

    Exit status 2 if anything was damaged.
    """
    printing = printing or Printing()
    store = default_store()
    with progress("verify", printing) as report:
        damaged = verify_store(store, report)
    names = [f"{one.sha256} ({' + '.join(one.kinds)})" for one in damaged]
    count = len(kept(store))
    show({"intact": count, "damaged": names}, f"{count:,} files are intact, {len(damaged)} were damaged.", printing)
    if damaged:
        raise CheckpointError(
            "\n".join(f"{store.root}: {name} was damaged and removed; it is made anew at need." for name in names)
        )


def parse_size(text: str) -> int:
    """Bytes of ``500MB``, ``2GB`` or ``1000``.

    Raises:
        SettingError: it is written otherwise.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text.upper())
    if not found:
        raise SettingError(f"--max-size {text!r}: write a number of bytes, or a number and KB, MB, GB or TB.")
    return int(float(found[1]) * _UNITS[found[2]])
