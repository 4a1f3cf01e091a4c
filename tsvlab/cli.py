"""``tsv lab``: rebuild the shipped base, or make a lab suite's checkpoints without the pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from cyclopts import App

from tsvlib.cli.options import Printing
from tsvlib.cli.printing import progress, show
from tsvlib.recipe import Recipe
from tsvlib.suite import load_suite

from .make import LAB, SHIPPED, make_lab
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
    suite: str = "lab-8", /, *, base: Path = SHIPPED, steps: int = Recipe().steps, printing: Printing | None = None
) -> None:
    """Make the base, pictures and fine-tunes of a lab suite below data/lab.

    Args:
        suite: lab-8, lab-14 or lab-20.
        base: the folder of a base; the shipped one by default.
        steps: of fine-tuning.
    """
    tasks = list(load_suite(suite).tasks)
    with progress("fine-tune", printing) as report:
        make_lab(tasks, LAB, Recipe(steps=steps), shipped=base, progress=report)
    show(
        {"suite": suite, "tasks": tasks, "folder": str(LAB)}, f"{LAB}: {len(tasks)} tasks made", printing or Printing()
    )
