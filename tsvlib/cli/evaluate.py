"""``tsv evaluate``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..candidate import candidates
from ..checkpoint import atomic_write
from ..evaluate import Evaluator
from ..report import comparison, formatted, metrics
from ..suite import load_suite
from .options import Printing, output_path, parse_pairs
from .printing import progress, show


def evaluate(
    *,
    suite: str,
    candidate: Annotated[list[str] | None, Parameter(negative=())] = None,
    split: Literal["validation", "test"] = "test",
    out: Path | None = None,
    force: bool = False,
    printing: Printing | None = None,
) -> None:
    """Measure candidates on a suite, beside the base and the fine-tuned models.

    Args:
        suite: a suite's name or YAML file.
        candidate: NAME=FILE of a merged checkpoint or an archive; repeat for each.
        split: the images to measure on.
        out: write the summary as JSON, for 'tsv compare'.
        force: replace the file if it exists.
    """
    printing = printing or Printing()
    loaded = load_suite(suite)
    if out:
        output_path(out, force)
    files = {name: Path(file) for name, file in parse_pairs(candidate or [], "--candidate").items()}
    evaluator = Evaluator(loaded, split)
    measured = {}
    chosen = candidates(loaded, files)
    for one in chosen:
        with progress(one.name, printing) as report:
            measured[one.name] = evaluator.accuracies(one.weights_of, report)
    zero_shot, fine_tuned = chosen[:2]
    summary = {
        one.name: metrics(measured[one.name], measured[fine_tuned.name], one.bytes, zero_shot.bytes) for one in chosen
    }
    if out:
        with atomic_write(out) as file:
            file.write((json.dumps(summary, indent=1) + "\n").encode())
    show(summary, formatted(comparison(summary)).to_markdown(disable_numparse=True), printing)
