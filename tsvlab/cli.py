"""``tsv lab``: rebuild the shipped base, or make a lab suite's checkpoints without the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from cyclopts.validators import Number

from tsvlib.cache import Cache
from tsvlib.cli.options import Caching, Printing, output_path
from tsvlib.cli.printing import progress, show
from tsvlib.store import Store
from tsvlib.suite import load_suite

from .make import LAB, LAB_RECIPE, SHIPPED, make_lab
from .pretrain import pretrain as pretrain_base

lab = App(name="lab", help="The small models that the lab suites are made of.")


@lab.command
def pretrain(*, out: Path, steps: int = 16000, width: int = 256, layers: int = 4, seed: int = 0) -> None:
    """Pre-train the base anew; about 75 minutes on one core with bfloat16 products. Run again, it goes on.

    Args:
        out: the folder to write model, configuration, vocabulary and log to.
        steps: of 192 pictures.
        width: of the image encoder.
        layers: of the image encoder.
        seed: of weights and pictures.
    """
    torch.set_num_threads(1)  # for layers this small a second thread costs more than it brings
    pretrain_base(out, steps=steps, width=width, layers=layers, seed=seed)


@lab.command
def make(
    suite: str = "lab-8", /, *, base: Path = SHIPPED, steps: int = LAB_RECIPE.steps, printing: Printing | None = None
) -> None:
    """Make the base, pictures and fine-tunes of a lab suite below data/lab.

    Args:
        suite: lab-8, lab-14 or lab-20.
        base: the folder of a base; the shipped one by default.
        steps: of fine-tuning.
    """
    tasks = list(load_suite(suite).tasks)
    with progress("fine-tune", printing) as report:
        make_lab(tasks, LAB, LAB_RECIPE.model_copy(update={"steps": steps}), shipped=base, progress=report)
    show(
        {"suite": suite, "tasks": tasks, "folder": str(LAB)}, f"{LAB}: {len(tasks)} tasks made", printing or Printing()
    )


@lab.command
def measure(
    *,
    out: Path,
    seeds: Annotated[int, Parameter(validator=Number(gte=1))] = 3,
    folder: Path = Path("data/lab-seeds"),
    force: bool = False,
    caching: Caching | None = None,
    printing: Printing | None = None,
) -> None:
    """Measure lab-8, lab-14 and lab-20 on test images over several seeds: tables and a plot. Run again, it goes on.

    Twenty fine-tunes a seed, about five minutes on two cores, and two to three more to search, merge and evaluate.

    Args:
        out: the folder for measured.csv, measured.svg and tables.md.
        seeds: of pictures and of their order in training.
        folder: for pictures and fine-tunes.
        force: replace files that exist.
    """
    from .measure import FILES, measure_lab, tables, write_measured

    printing = printing or Printing()
    for name in FILES:
        output_path(out / name, force)
    cache = (caching or Caching()).open() or Cache(Store(folder / "store"))
    outcome = measure_lab(folder, seeds, cache, lambda title: progress(title, printing))
    write_measured(out, outcome)
    rows = outcome.shown.to_dict("records")
    show({"out": str(out), "seeds": seeds, "rows": rows}, tables(outcome.shown), printing)
