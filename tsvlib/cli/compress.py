"""``tsv compress``"""

from __future__ import annotations

from pathlib import Path

from ..archive import ArchiveDtype
from ..archive import compress as compress_checkpoints
from ..archive.budget import Weighting
from ..errors import SuiteError
from .options import Caching, Printing, Sources, output_path
from .printing import progress, show, work_done


def compress(
    *,
    sources: Sources | None = None,
    rank_fraction: float | None = None,
    budget: str | None = None,
    weighting: Weighting = "energy",
    dtype: ArchiveDtype = "fp16",
    out: Path,
    force: bool = False,
    caching: Caching | None = None,
    printing: Printing | None = None,
) -> None:
    """Store many fine-tunes of one base as one small archive (TSV-C).

    Args:
        rank_fraction: share of each matrix's singular triplets to keep; 1 / number of tasks by default.
        budget: bytes of the whole archive, such as 10% (of the fine-tunes) or 1.5MB, in place of a rank fraction.
        weighting: what counts under a budget: energy as it is, or relative to that of its task or its matrix, or what
            costs accuracy, measured on validation images of the suite.
        dtype: of the stored factors; int8 has a scale a column.
        out: the archive to write.
        force: replace the file if it exists.
    """
    sources, printing = sources or Sources(), printing or Printing()
    cache = (caching or Caching()).open()
    output_path(out, force)
    suite = sources.load_suite()
    if weighting == "accuracy" and not suite:
        raise SuiteError("--weighting accuracy: needs --suite, to measure on its validation images.")
    if weighting == "accuracy" and not budget:
        raise SuiteError("--weighting accuracy: says how a --budget is spent; give one.")
    base, tasks = sources.open()
    sensitivities = None
    if weighting == "accuracy" and suite:
        from ..sensitivity import sensitivities as measure  # open_clip takes seconds to import

        with progress("sensitivity", printing) as report:
            sensitivities = measure(suite, tasks, progress=report)
    with progress("compress", printing) as report:
        archive = compress_checkpoints(
            base, tasks, out=out, key_policy=sources.key_policy, rank_fraction=rank_fraction, budget=budget,
            weighting=weighting, sensitivities=sensitivities, dtype=dtype, cache=cache, progress=report,
        )  # fmt: skip
    size, dense = out.stat().st_size, sum(checkpoint.nbytes for checkpoint in tasks.values())
    result = {
        "out": str(out), "bytes": size, "dense_bytes": dense, "digest": archive.file.digest, **archive.metadata,
        "work": cache.work() if cache else {},
    }  # fmt: skip
    text = f"{out}: {len(tasks)} tasks in {size:,} bytes, {size / dense:.1%} of the {dense:,} of the fine-tunes"
    show(result, text + work_done(cache), printing)
