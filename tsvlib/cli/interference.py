"""``tsv interference``"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..checkpoint import atomic_write
from ..compatibility import check_compatible
from ..factors import kept_rank
from ..interference import Norm, singular_task_interference
from ..task_vector import TaskVector
from .options import Printing, Sources, output_path
from .printing import progress, show


def interference(
    *,
    sources: Sources | None = None,
    norm: Norm = "entrywise_l1",
    rank_fraction: float | None = None,
    out: Path | None = None,
    force: bool = False,
    printing: Printing | None = None,
) -> None:
    """Measure singular task interference (STI), one figure a matrix.

    Args:
        norm: of the interference matrix; the paper's figures fit entrywise_l1.
        rank_fraction: share of each matrix's singular triplets to use; 1 / number of tasks by default.
        out: write the table as CSV.
        force: replace the file if it exists.
    """
    sources, printing = sources or Sources(), printing or Printing()
    if out:
        output_path(out, force)
    base, tasks = sources.open()
    key_policy = sources.key_policy
    check_compatible(base, tasks)
    vectors = [TaskVector(task, base, tasks[task]) for task in sorted(tasks)]
    rows = []
    with progress("interference", printing) as report:
        for i, name in enumerate(base):
            for matrices in zip(*(vector.matrices(name, key_policy) for vector in vectors), strict=True):
                deltas = [matrix.load() for matrix in matrices]
                if any(delta.any() for delta in deltas):
                    rank = kept_rank(deltas[0].shape, len(tasks), rank_fraction)
                    value = singular_task_interference(deltas, rank=rank, norm=norm)
                    rows.append({"parameter": matrices[0].key, "rank": rank, "norm": norm, "sti": float(value)})
            report(name, i + 1, len(base))
    table = pd.DataFrame(rows)
    if out:
        with atomic_write(out) as file:
            file.write(table.to_csv(index=False).encode())
    show({"interference": rows, "sum": float(table["sti"].sum())}, table.to_markdown(index=False), printing)
