"""``tsv archive``: what an archive holds, and changing it task by task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from ..archive import Archive, ArchiveDtype, open_archive, remove_task
from ..archive import add as add_tasks
from ..archive.budget import Weighting
from ..checkpoint import open_checkpoint
from .options import Caching, Printing, parse_pairs
from .printing import progress, show, work_done

archive = App(name="archive", help="List, add, remove and check the tasks of an archive.")


@archive.command(name="ls")
def list_tasks(file: str, /, *, task: str | None = None, printing: Printing | None = None) -> None:
    """List the tasks of an archive, or the parameters of one, with the bytes that each takes.

    Args:
        file: a path or URI of an archive.
        task: list the parameters of this one, with the bounds on their errors.
    """
    opened, printing = open_archive(file), printing or Printing()
    dense = sum(spec.nbytes for spec in opened.base_table.specs.values())
    if task is not None:
        show(*_parameters(opened, task), printing)
        return
    table = Table("task", "bytes", "of a dense encoder", "dtype", "kept", "digest")
    rows: dict[str, Any] = {}
    for name in opened.tasks:
        made, size = opened.task(name).metadata, opened.task_nbytes(name)
        kept = ", ".join(f"{key} {_short(made['parameters'][key])}" for key in ("rank_fraction", "budget") if key in
                         made["parameters"])  # fmt: skip
        digest = opened.metadata["tasks"][name]
        rows[name] = {"bytes": size, "bytes_ratio": size / dense, **made, "digest": digest}
        table.add_row(name, f"{size:,}", f"{size / dense:.2%}", made["parameters"]["dtype"], kept, digest[:12])
    table.add_section()
    table.add_row("the whole file", f"{opened.nbytes:,}", f"{opened.nbytes / dense:.2%}", "", "", "")
    base = opened.metadata["base"]["digest"]
    show({"file": str(opened.path), "bytes": opened.nbytes, "base": base, "tasks": rows}, table, printing)


@archive.command
def add(
    file: Path,
    /,
    *,
    base: str,
    task: Annotated[list[str], Parameter(negative=())],
    rank_fraction: float | None = None,
    budget: str | None = None,
    weighting: Weighting | None = None,
    dtype: ArchiveDtype | None = None,
    caching: Caching | None = None,
    printing: Printing | None = None,
) -> None:
    """Add tasks to an archive, in place: those it holds are not written anew.

    What is not given is as for the tasks that it holds.

    Args:
        file: the archive.
        base: the checkpoint that the archive was made from.
        task: NAME=CHECKPOINT of a fine-tune; repeat for each.
        rank_fraction: share of each matrix's singular triplets to keep.
        budget: bytes of the added tasks, such as 10% (of their checkpoints) or 1.5MB, in place of a rank fraction.
        weighting: what counts under a budget.
        dtype: of the stored factors.
    """
    printing, cache = printing or Printing(), (caching or Caching()).open()
    tasks = {name: open_checkpoint(uri) for name, uri in parse_pairs(task, "--task").items()}
    with progress("add", printing) as report:
        opened = add_tasks(
            file, open_checkpoint(base), tasks, rank_fraction=rank_fraction, budget=budget, weighting=weighting,
            dtype=dtype, cache=cache, progress=report,
        )  # fmt: skip
    added = {name: opened.task_nbytes(name) for name in tasks}
    result = {"file": str(file), "bytes": opened.nbytes, "added": added, "work": cache.work() if cache else {}}
    text = (
        f"{file}: {len(added)} added in {sum(added.values()):,} bytes; {len(opened.tasks)} tasks in {opened.nbytes:,}"
    )
    show(result, text + work_done(cache), printing)


@archive.command
def remove(file: Path, task: str, /, *, printing: Printing | None = None) -> None:
    """Remove a task from an archive; the file is written anew without it.

    Args:
        file: the archive.
        task: which.
    """
    before = Archive(file).nbytes
    opened = remove_task(file, task)
    result = {"file": str(file), "bytes": opened.nbytes, "freed": before - opened.nbytes, "tasks": opened.tasks}
    text = f"{file}: {task!r} removed, {before - opened.nbytes:,} bytes freed; {len(opened.tasks)} tasks left"
    show(result, text, printing or Printing())


@archive.command
def verify(file: str, /, *, base: str | None = None, printing: Printing | None = None) -> None:
    """Read every entry of an archive and compare it with its checksum; exit status 2 at the first that is damaged.

    Args:
        file: a path or URI of an archive.
        base: also compare every tensor of this checkpoint with what the archive knows of its base.
    """
    opened = open_archive(file)
    entries = [(task, key, size) for task, key, size in opened.verify()]
    if base is not None:
        checked = opened.checked_base(open_checkpoint(base))
        for name in checked:
            checked[name]
    result = {"file": str(opened.path), "bytes": opened.nbytes, "entries": len(entries), "base": base}
    text = f"{opened.path}: sound; {len(entries):,} entries of {len(opened.tasks)} tasks" + (
        ", and its base" * bool(base)
    )
    show(result, text, printing or Printing())


def _parameters(opened: Archive, task: str) -> tuple[dict[str, Any], Table]:
    reader = opened.task(task)
    table = Table("parameter", "kept", "bytes", "truncation", "quantisation", title=task, title_justify="left")
    rows = {}
    for key, entry in reader.entries.items():
        size = reader.entry_nbytes(key)
        rows[key] = {
            "rank": entry.rank, "bytes": size, "truncation": entry.truncation, "quantisation": entry.quantisation,
        }  # fmt: skip
        kept = f"rank {entry.rank}" if entry.rank else "whole"
        table.add_row(key, kept, f"{size:,}", f"{entry.truncation:.2e}", f"{entry.quantisation:.2e}")
    return {"file": str(opened.path), "task": task, "parameters": rows}, table


def _short(value: Any) -> str:
    return f"{value:.4g}"
