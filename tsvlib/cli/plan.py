"""``tsv plan``"""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..errors import MismatchError
from ..plan import Plan
from ..plan import plan as plan_merge
from ..tensors import FloatDtype
from .options import Printing, Sources, parse_parameters
from .printing import progress, show


def plan(
    *,
    sources: Sources | None = None,
    method: str = "tsv-m",
    set: Annotated[list[str] | None, Parameter(negative=())] = None,
    dtype: FloatDtype | None = None,
    values: bool = True,
    tensors: Annotated[bool, Parameter(negative=())] = False,
    printing: Printing | None = None,
) -> None:
    """Say what a merge will do, fetch and cost, and everything that stands against it, before any work.

    Of checkpoints elsewhere only the headers are read. Exit status 2 if anything stands against it.

    Args:
        method: how to merge; see docs/methods.md.
        set: NAME=VALUE of a method's parameter.
        dtype: of the result, as for 'tsv merge'.
        values: compare the values of the checkpoints at hand as well; reads each once.
        tensors: list every tensor.
    """
    sources, printing = sources or Sources(), printing or Printing()
    base, tasks = sources.uris()
    with progress("compare", printing) as report:
        planned = plan_merge(
            base,
            tasks,
            method,
            key_policy=sources.key_policy,
            dtype=dtype,
            values=values,
            progress=report,
            **parse_parameters(set or []),
        )
    show(planned.as_dict(), _readable(planned, tensors), printing)
    if planned.problems:
        raise MismatchError(planned.problems)


def _readable(planned: Plan, every_tensor: bool) -> Any:
    parts: list[Any] = []
    if every_tensor:
        table = Table("tensor", "shape", "dtype", "treatment", "matrices")
        for tensor in planned.tensors:
            shape = " × ".join(map(str, tensor.shape))
            table.add_row(tensor.name, shape, tensor.dtype, tensor.treatment, str(tensor.matrices or ""))
        parts.append(table)
    figures = {
        "tensors": ", ".join(f"{count} {treatment}" for treatment, count in planned.counts().items()),
        "to fetch": f"{planned.bytes_to_fetch:,} bytes in {sum(not file.here for file in planned.files)} files",
        "result": f"{planned.out_bytes:,} bytes",
        "peak memory": f"about {planned.peak_memory_bytes / 2**20:,.0f} MiB beyond the program",
        "time": f"about {planned.seconds:,.0f} s without fetching",
    }
    if planned.changes:
        figures["change"] = ", ".join(f"{task} {share:.1%}" for task, share in planned.changes.items())
    parts += [Text(f"{name + ':':<13}{value}") for name, value in figures.items()]
    parts += [Text(f"note: {note}") for note in planned.notes]
    return Group(*parts)
