"""``tsv evaluate``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from ..atomic import atomic_write
from ..candidate import candidates
from ..decoded import DECODED_BYTES
from ..evaluate import Computing, Precision
from ..protocol import measure
from ..report import comparison, formatted, metrics, told
from ..suite import load_suite
from .options import Caching, Printing, output_path, parse_pairs
from .printing import progress, show


def evaluate(
    *,
    suite: str,
    candidate: Annotated[list[str] | None, Parameter(negative=())] = None,
    split: Literal["validation", "test"] = "test",
    out: Path | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    decoded_megabytes: Annotated[int, Parameter(validator=Number(gte=1))] = DECODED_BYTES // 2**20,
    force: bool = False,
    caching: Caching | None = None,
    printing: Printing | None = None,
) -> None:
    """Measure candidates on a suite, beside the base and the fine-tuned models, with intervals and a guard.

    Args:
        suite: a suite's name or YAML file.
        candidate: NAME=FILE of a merged checkpoint or an archive; repeat for each. All share one pass over the images.
        split: the images to measure on.
        out: write the summary as JSON, for 'tsv compare', and every answer beside it as .parquet.
        device: cpu, cuda, or auto for a GPU where there is one.
        precision: by default fp32 on the CPU, bf16 on a GPU.
        decoded_megabytes: of decoded images to hold at a time; where all fit, they are decoded once.
        force: replace the files if they exist.
    """
    printing = printing or Printing()
    loaded = load_suite(suite)
    if out:
        output_path(out, force)
        output_path(out.with_suffix(".parquet"), force)
    files = {name: Path(file) for name, file in parse_pairs(candidate or [], "--candidate").items()}
    chosen = candidates(loaded, files)
    with progress("evaluate", printing) as report:
        predictions = measure(
            loaded,
            chosen,
            split,
            computing=Computing(device, precision),
            cache=(caching or Caching()).open(),
            decoded_bytes=decoded_megabytes * 2**20,
            progress=report,
        )
    findings = predictions.findings()
    dense = chosen[0].bytes
    summary = {one.name: metrics(predictions, one.name, findings, one.bytes, dense) for one in chosen}
    if out:
        predictions.write(out.with_suffix(".parquet"))
        with atomic_write(out) as file:
            file.write((json.dumps(summary, indent=1) + "\n").encode())
    table = formatted(comparison(summary), summary).to_markdown(disable_numparse=True)
    show(summary, "\n".join([table, *told(findings)]), printing)
