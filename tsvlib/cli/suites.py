"""``tsv suites``, ``tsv suites new``, ``tsv suites check``"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..atomic import atomic_write
from ..data.public import public_datasets
from ..errors import SuiteError
from ..suite import load_suite, packaged_suites
from .options import Printing, output_path
from .printing import progress, show

suites = App(name="suites", help="List, check and write suites.")


@suites.default
def list_suites(*, datasets: Annotated[bool, Parameter(negative=())] = False, printing: Printing | None = None) -> None:
    """List the suites that come with the package.

    Args:
        datasets: list the public data sets that a suite's task can name, instead.
    """
    if datasets:
        titles = public_datasets()
        table = Table("dataset", "title")
        for name, title in titles.items():
            table.add_row(name, title)
        return show({"datasets": titles}, table, printing or Printing())
    loaded = [load_suite(name) for name in packaged_suites()]
    loaded.sort(key=lambda suite: (suite.family, suite.name.rpartition("-")[0], len(suite.tasks)))
    table = Table("suite", "tasks", "checkpoints", "description")
    for suite in loaded:
        table.add_row(suite.name, str(len(suite.tasks)), suite.family or "made here", suite.description)
    show({"suites": [suite.model_dump() for suite in loaded]}, table, printing or Printing())


@suites.command
def new(
    checkpoints: Path,
    data: Path | None = None,
    /,
    *,
    out: Path = Path("suite.yaml"),
    name: str | None = None,
    base: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    force: Annotated[bool, Parameter(negative=())] = False,
    printing: Printing | None = None,
) -> None:
    """Write a suite file from a folder of checkpoints and a folder of data, matched by name.

    Args:
        checkpoints: a folder of fine-tuned checkpoints, and perhaps the base and the model.
        data: a folder of data sets: folders of images, parquet files or tar shards.
        out: the file to write.
        name: of the suite; by default that of the file.
        base: the pre-trained checkpoint, if it is not called base.
        model: open_clip's name of the model, or a folder with open_clip_config.json.
        weights: the whole model, where --model is open_clip's name.
        force: replace the file if it exists.
    """
    from ..suite_draft import draft_suite

    output_path(out, force)
    base, model = (_from(out, given) for given in (base, model))
    draft = draft_suite(checkpoints, data, out, name=name, base=base, model=model, weights=weights)
    with atomic_write(out) as file:
        file.write(draft.text.encode())
    left = [f"not matched, a checkpoint: {one}" for one in draft.unmatched_checkpoints]
    left += [f"not matched, a data set: {one}" for one in draft.unmatched_data]
    lines = [f"{out}: {len(draft.tasks)} tasks: {', '.join(draft.tasks)}", *left, *draft.notes]
    lines.append(f"Read it, correct its class names and templates, then: tsv suites check {out}")
    result = {
        "out": str(out),
        "tasks": draft.tasks,
        "unmatched_checkpoints": draft.unmatched_checkpoints,
        "unmatched_data": draft.unmatched_data,
        "notes": draft.notes,
    }
    show(result, "\n".join(lines), printing or Printing())


@suites.command
def check(
    suite: str,
    /,
    *,
    online: Annotated[bool, Parameter(negative=())] = False,
    images: Annotated[bool, Parameter(negative=())] = False,
    printing: Printing | None = None,
) -> None:
    """Check a suite's file, model, checkpoints and data before any work. Exit status 2 if anything is wrong.

    Args:
        suite: a suite's name or YAML file.
        online: also read headers of checkpoints and fetch data that lie elsewhere.
        images: decode every image, and name each that cannot be.
    """
    from ..suite_check import check_suite

    printing = printing or Printing()
    loaded = load_suite(suite)
    with progress("check", printing) as report:
        found = check_suite(loaded, online=online, images=images, progress=report)
    table = Table("task", "classes", "train", "validation", "test", "data")
    for name, task in found.tasks.items():
        counts = [
            f"{task.images[split]:,}" if split in task.images else "" for split in ("train", "validation", "test")
        ]
        table.add_row(name, str(task.classes or ""), *counts, task.data)
    parts: list[Any] = [table, Text(f"checkpoints: {found.family}")] if found.family else [table]
    if found.merge:
        parts.append(Text(_foreseen(found.merge)))
    parts += [Text(f"note: {note}") for note in found.notes]
    show(found.as_dict(), Group(*parts), printing)
    if found.problems:
        raise SuiteError("\n".join(found.problems))


def _from(out: Path, given: str | None) -> str | None:
    """A path as it is written in a file: from there; anything else as it is."""
    return Path(os.path.relpath(given, out.parent)).as_posix() if given and Path(given).exists() else given


def _foreseen(merge: dict[str, float]) -> str:
    return (
        f"a tsv-m merge: {merge['matrices']:.0f} matrices, result {merge['encoder_bytes'] / 1e6:,.0f} MB, peak memory "
        f"about {merge['peak_memory_bytes'] / 2**20:,.0f} MiB beyond the program, about {merge['seconds']:,.0f} s"
    )
