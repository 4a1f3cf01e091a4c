"""``tsv merge``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..alpha import check_parameters, search, searched
from ..checkpoint import Checkpoint
from ..errors import SuiteError
from ..merging import merge as merge_checkpoints
from ..tensors import FloatDtype
from .options import Caching, Printing, Sources, output_path, parse_parameters
from .printing import progress, show, work_done


def merge(
    *,
    sources: Sources | None = None,
    method: str = "tsv-m",
    set: Annotated[list[str] | None, Parameter(negative=())] = None,
    dtype: FloatDtype | None = None,
    out: Path,
    force: bool = False,
    caching: Caching | None = None,
    printing: Printing | None = None,
) -> None:
    """Merge fine-tunes of one base into one checkpoint.

    Args:
        method: how to merge; see docs/methods.md.
        set: NAME=VALUE of a method's parameter, such as alpha=1.0; alpha=search and rank_fraction=search choose it on
            the suite's validation images.
        dtype: of the result's floating-point tensors; by default the base's, or fp32 where a fine-tune's is another.
        out: the safetensors file to write; with a name that ends in .index.json, shards beside it.
        force: replace the file if it exists.
    """
    sources, printing = sources or Sources(), printing or Printing()
    cache = (caching or Caching()).open()
    parameters = parse_parameters(set or [])
    check_parameters(method, parameters)
    output_path(out, force)
    base, tasks = sources.open()
    key_policy = sources.key_policy
    if names := searched(parameters):
        suite = sources.load_suite()
        if suite is None:
            raise SuiteError(
                f"--set {names[0]}=search: needs a suite to choose {names[0]} on; give --suite, or a number."
            )
        from ..evaluate import Computing, Evaluator  # these load open_clip, which no other merge needs
        from ..preflight import check_before_evaluation

        def merged_with(values: dict[str, Any]) -> Checkpoint:
            return merge_checkpoints(base, tasks, method, key_policy=key_policy, cache=cache, **values)

        check_before_evaluation(suite)
        evaluator = Evaluator(suite, "validation", Computing(), cache)
        with progress(" and ".join(names), printing) as report:
            parameters = search(evaluator, base, merged_with, method, parameters, len(tasks), report).parameters
    with progress("merge", printing) as report:
        merged = merge_checkpoints(
            base, tasks, method, out=out, key_policy=key_policy, dtype=dtype, progress=report, cache=cache, **parameters
        )
    result = {
        "out": str(out), "bytes": out.stat().st_size, "digest": merged.digest, **merged.metadata,
        "work": cache.work() if cache else {},
    }  # fmt: skip
    settings = ", ".join(f"{name} {value}" for name, value in merged.metadata["parameters"].items())
    text = f"{out}: {len(tasks)} tasks merged by {method} ({settings}), {out.stat().st_size:,} bytes"
    show(result, text + work_done(cache), printing)
