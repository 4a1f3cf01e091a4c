"""``tsv fetch``"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from ..checkpoint import open_checkpoint
from ..data import SPLITS, open_data
from ..errors import SuiteError
from ..progress import Progress
from ..suite import Suite
from .options import Printing, Sources
from .printing import progress, show


def fetch(
    *checkpoints: str,
    sources: Sources | None = None,
    data: Annotated[bool, Parameter(negative=())] = False,
    printing: Printing | None = None,
) -> None:
    """Bring checkpoints into the store, so that they can be worked on offline.

    Args:
        checkpoints: paths or URIs, in place of or beside --suite, --base and --task.
        data: also bring the suite's images, and the model that its heads are made with.
    """
    sources, printing = sources or Sources(), printing or Printing()
    wanted = list(checkpoints)
    if sources.given or not wanted:
        base, tasks = sources.uris()
        wanted += [base, *tasks.values()]
    suite = sources.load_suite()
    if data and suite is None:
        raise SuiteError("--data: which data? Name a suite with --suite.")
    if data and suite and suite.clip_weights:
        wanted.append(suite.clip_weights)
    fetched = []
    with progress("fetch", printing) as report:
        for uri in wanted:
            checkpoint = open_checkpoint(uri, report)
            fetched.append(
                {"uri": uri, "path": str(checkpoint.path), "bytes": checkpoint.nbytes, "tensors": len(checkpoint)}
            )
        images = _fetch_images(suite, report) if data and suite else {}
    lines = [f"{one['uri']}: {one['tensors']} tensors, {one['bytes']:,} bytes, at {one['path']}" for one in fetched]
    for task, counts in images.items():
        lines.append(f"{task}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " images")
    show({"fetched": fetched, "images": images}, "\n".join(lines), printing)


def _fetch_images(suite: Suite, report: Progress) -> dict[str, dict[str, int]]:
    """Task -> split -> number of images, of every split that the data has."""
    found: dict[str, dict[str, int]] = {}
    for done, task in enumerate(suite.tasks, 1):
        reader = open_data(suite.data(task))
        found[task] = {split: len(reader.records(split).labels) for split in SPLITS if reader.files(split)}
        report(task, done, len(suite.tasks))
    return found
