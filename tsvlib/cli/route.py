"""``tsv route``"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.table import Table

from ..archive import open_archive
from ..checkpoint import open_checkpoint
from ..routed import RoutedEvaluator
from ..routing import DiscriminantRouter, Router
from ..suite import load_suite
from .options import Printing, output_path
from .printing import progress, show


def route(
    archive: str,
    /,
    *,
    suite: str,
    router: Literal["discriminant", "residual"] = "discriminant",
    layer: str | None = None,
    images: int = 4000,
    merge: int = 1,
    threshold: float = 0.2,
    split: Literal["validation", "test"] = "test",
    saved: Path | None = None,
    save: Path | None = None,
    force: bool = False,
    printing: Printing | None = None,
) -> None:
    """Evaluate an archive on the mixed images of all tasks, where a router tells which task each belongs to.

    Args:
        archive: a path or URI of an archive of the suite's tasks.
        suite: a suite's name or YAML file.
        router: discriminant, fitted to training images of each task, or residual, which needs none.
        layer: the module of the image encoder whose input is looked at; among the last by default.
        images: training images of each task at most, to fit the discriminant router to.
        merge: tasks at most whose models are merged by TSV-M for an image that the router is unsure of.
        threshold: least weight of a task that is merged.
        split: the images to measure on.
        saved: a router to use, as --save wrote it.
        save: write the discriminant router here.
        force: replace that file if it exists.
    """
    printing, loaded = printing or Printing(), load_suite(suite)
    if save:
        output_path(save, force)
    evaluator = RoutedEvaluator(loaded, open_archive(archive), open_checkpoint(loaded.base_uri), split)
    if saved:
        chosen: Router = DiscriminantRouter.load(saved)
    elif router == "residual":
        chosen = evaluator.residual_router(layer)
    else:
        chosen = evaluator.discriminant_router(layer, images)
    if save and isinstance(chosen, DiscriminantRouter):
        chosen.save(save)
    with progress("route", printing) as report:
        found = evaluator.evaluate(chosen, merge, threshold, report)
    columns = {"routed right": found.routing, "end accuracy": found.end, "oracle": found.oracle}
    table = Table("task", *columns)
    for task in found.end:
        table.add_row(task, *(f"{100 * values[task]:.1f}" for values in columns.values()))
    table.add_section()
    means = {title: sum(values.values()) / len(values) for title, values in columns.items()}
    table.add_row("mean", *(f"{100 * value:.1f}" for value in means.values()))
    result = {
        "routing": found.routing, "end": found.end, "oracle": found.oracle, "points_lost": found.points_lost,
        "models": found.models, "layer": chosen.layer,
    }  # fmt: skip
    show(result, table, printing)
