"""``tsv interference``"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from ..checkpoint import atomic_write
from ..interference import Norm, interference_of, pairwise_interference_of
from ..task_factors import factors_by_matrix
from .options import Printing, Sources, output_path
from .printing import progress, show


def interference(
    *,
    sources: Sources | None = None,
    norm: Norm = "entrywise_l1",
    rank_fraction: float | None = None,
    pairs: bool = False,
    out: Path | None = None,
    force: bool = False,
    printing: Printing | None = None,
) -> None:
    """Measure singular task interference (STI), one figure a matrix.

    Args:
        norm: of the interference matrix; the paper's figures fit entrywise_l1.
        rank_fraction: share of each matrix's singular triplets to use; 1 / number of tasks by default.
        pairs: of every two tasks alone instead, summed over the matrices.
        out: write the table as CSV.
        force: replace the file if it exists.
    """
    sources, printing = sources or Sources(), printing or Printing()
    if out:
        output_path(out, force)

    base, tasks = sources.open()
    total, rows = torch.zeros(len(tasks), len(tasks)), []
    with progress("interference", printing) as report:
        for factors in factors_by_matrix(
            base, tasks, rank_fraction=rank_fraction, key_policy=sources.key_policy, progress=report
        ):
            triplets = [(one.U, one.S, one.Vh) for one in factors]
            if pairs:
                total += pairwise_interference_of(triplets, norm)
            else:
                sti = interference_of(triplets, norm)
                rows.append({"parameter": factors[0].key, "rank": factors[0].rank, "norm": norm, "sti": sti})
    if pairs:
        table = pd.DataFrame(total.tolist(), index=sorted(tasks), columns=sorted(tasks))
        result: dict = {"pairs": table.to_dict(), "norm": norm}
    else:
        table = pd.DataFrame(rows, columns=["parameter", "rank", "norm", "sti"])
        result = {"interference": rows, "sum": float(table["sti"].sum())}
    if out:
        with atomic_write(out) as file:
            file.write(table.to_csv(index=pairs).encode())
    show(result, table.to_markdown(index=pairs), printing)
