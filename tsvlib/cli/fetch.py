"""``tsv fetch``"""

from __future__ import annotations

from ..checkpoint import open_checkpoint
from .options import Printing, Sources
from .printing import progress, show


def fetch(
    *checkpoints: str,
    sources: Sources | None = None,
    printing: Printing | None = None,
) -> None:
    """Bring checkpoints into the store, so that they can be worked on offline.

    Args:
        checkpoints: paths or URIs, in place of or beside --suite, --base and --task.
    """
    sources, printing = sources or Sources(), printing or Printing()
    wanted = list(checkpoints)
    if sources.given or not wanted:
        base, tasks = sources.uris()
        wanted += [base, *tasks.values()]
    fetched = []
    with progress("fetch", printing) as report:
        for uri in wanted:
            checkpoint = open_checkpoint(uri, report)
            fetched.append(
                {"uri": uri, "path": str(checkpoint.path), "bytes": checkpoint.nbytes, "tensors": len(checkpoint)}
            )
    lines = [f"{one['uri']}: {one['tensors']} tensors, {one['bytes']:,} bytes, at {one['path']}" for one in fetched]
    show({"fetched": fetched}, "\n".join(lines), printing)
