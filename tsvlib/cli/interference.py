"""``tsv interference``"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from torch import Tensor

from ..checkpoint import atomic_write
from ..compatibility import check_compatible
from ..factors import kept_rank
from ..interference import Norm, pairwise_task_interference, singular_task_interference
from ..key_policy import KeyPolicy
from ..task_vector import TaskVector
from .options import Printing, Sources, output_path
from .printing import progress, show

Measure = Callable[[list[Tensor], int], float | Tensor]


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

    def whole(deltas: list[Tensor], rank: int) -> float:
        return singular_task_interference(deltas, rank, norm)

    def pairwise(deltas: list[Tensor], rank: int) -> Tensor:
        return pairwise_task_interference(deltas, rank, norm)

    measured = _measured(sources, rank_fraction, pairwise if pairs else whole, printing)
    if pairs:
        tasks = sorted(sources.open()[1])
        sums = sum((value for _, _, value in measured), start=0)
        table = pd.DataFrame(sums.tolist() if isinstance(sums, Tensor) else 0.0, index=tasks, columns=tasks)
        result: dict = {"pairs": table.to_dict(), "norm": norm}
    else:
        rows = [{"parameter": key, "rank": rank, "norm": norm, "sti": value} for key, rank, value in measured]
        table = pd.DataFrame(rows, columns=["parameter", "rank", "norm", "sti"])
        result = {"interference": rows, "sum": float(table["sti"].sum())}
    if out:
        with atomic_write(out) as file:
            file.write(table.to_csv(index=pairs).encode())
    show(result, table.to_markdown(index=pairs), printing)


def _measured(
    sources: Sources, rank_fraction: float | None, measure: Measure, printing: Printing
) -> Iterator[tuple[str, int, float | Tensor]]:
    """(parameter, rank, what was measured) of every matrix in which a task differs from the base."""
    base, tasks = sources.open()
    key_policy = sources.key_policy or KeyPolicy()
    check_compatible(base, tasks)
    vectors = [TaskVector(task, base, tasks[task]) for task in sorted(tasks)]
    with progress("interference", printing) as report:
        for i, name in enumerate(base):
            for matrices in zip(*(vector.matrices(name, key_policy) for vector in vectors), strict=True):
                deltas = [matrix.load() for matrix in matrices]
                if any(delta.any() for delta in deltas):
                    rank = kept_rank(deltas[0].shape, len(tasks), rank_fraction)
                    yield matrices[0].key, rank, measure(deltas, rank)
            report(name, i + 1, len(base))
