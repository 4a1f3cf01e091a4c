"""``tsv classify``"""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ..errors import SuiteError
from .options import Printing, output_path
from .printing import progress, show

MOST_SHOWN = 1000


def classify(
    model: str,
    images: list[Path],
    /,
    *,
    task: str | None = None,
    top: int = 5,
    out: Path | None = None,
    force: bool = False,
    printing: Printing | None = None,
) -> None:
    """Classify images with an exported or registered model.

    Args:
        model: a folder that 'tsv export' wrote, or a model of the registry such as models:/lab-8@champion.
        images: image files, folders of them, or parquet tables with a column 'image' (and 'task', if they differ).
        task: whose classes to choose from; every task's by default. An archive needs it, unless exported with a router.
        top: how many classes to give probabilities of.
        out: write a table to this .parquet or .csv file instead of printing it.
        force: replace the file if it exists.
    """
    from ..serving import open_classifier  # torchvision takes seconds to import
    from ..serving.scoring import read_images, score, write_scores
    from ..sources.folder import local_folder

    printing = printing or Printing()
    if top < 1:
        raise SuiteError(f"--top {top}: must be at least 1.")
    if out:
        output_path(out, force)
    classifier = open_classifier(local_folder(model))
    batches = score(classifier, read_images(images, task), top)
    if out:
        with progress("classify", printing) as report:
            rows = write_scores(batches, out, report)
        return show({"out": str(out), "rows": rows}, f"{out}: {rows:,} rows", printing)
    found = []
    for batch in batches:
        found += batch
        if len(found) > MOST_SHOWN:
            raise SuiteError(f"more than {MOST_SHOWN} rows: write them to a file with --out.")
    table = Table("image", "task", "class", "probability", f"of the likeliest {top}")
    for row in found:
        others = ", ".join(f"{name} {value:.3f}" for name, value in row.get("probabilities", []))
        chosen = [row["class"], f"{row['probability']:.3f}"] if "class" in row else [f"({row['problem']})", ""]
        table.add_row(row["image"], row["task"], *chosen, others)
    show({"scores": [row | {"probabilities": dict(row.get("probabilities", []))} for row in found]}, table, printing)
