"""``tsv verify``"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from ..errors import CheckpointError
from ..verification import verify as verify_file
from .options import Printing, parse_pairs
from .printing import progress, show


def verify(
    checkpoint: str,
    /,
    *,
    base: str | None = None,
    task: Annotated[list[str] | None, Parameter(negative=())] = None,
    printing: Printing | None = None,
) -> None:
    """Rebuild a merged file or an archive from what its header says it is made of, and compare.

    Exit status 2 if it differs by more than the rounding of another machine.

    Args:
        checkpoint: a file that 'tsv merge' or 'tsv compress' wrote.
        base: where its base lies now, if not where it was.
        task: NAME=CHECKPOINT of a fine-tune that lies elsewhere now; repeat for each.
    """
    printing = printing or Printing()
    with progress("rebuild", printing) as report:
        found = verify_file(checkpoint, base, parse_pairs(task or [], "--task"), report)
    difference = f"{found.largest_difference:.0e} of its largest value"
    sentence = {
        "identical": "what its header says, to the last bit",
        "equal": f"what its header says, up to rounding: {found.furthest!r} differs by {difference}",
        "different": f"not what its header says: {found.furthest!r} differs by {difference}. It was changed, or made "
        "by other code",
    }[found.verdict]
    show(asdict(found) | {"verdict": found.verdict}, f"{found.source}: {sentence}.", printing)
    if found.verdict == "different":
        raise CheckpointError(f"{found.source}: is {sentence}.")
