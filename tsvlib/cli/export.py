"""``tsv export``"""

from __future__ import annotations

from pathlib import Path

from ..cache import default_cache
from ..errors import SuiteError
from ..suite import load_suite
from .options import Printing
from .printing import show


def export(
    candidate: str,
    /,
    *,
    suite: str,
    out: Path,
    router: Path | None = None,
    force: bool = False,
    printing: Printing | None = None,
) -> None:
    """Write a folder that classifies images: weights, heads and class names, for 'tsv classify' and for serving.

    Args:
        candidate: a merged checkpoint, or an archive.
        suite: what it was made for; its class names and templates make the heads.
        out: the folder to write.
        router: of an archive: what 'tsv route --save' wrote, so that images need not name their task.
        force: write into a folder that has something in it.
    """
    from ..serving import export_classifier  # open_clip takes seconds to import

    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise SuiteError(f"{out}: exists already. Choose another --out, or add --force to write into it.")
    description = export_classifier(load_suite(suite), candidate, out, default_cache(), router)
    size = sum(file.stat().st_size for file in out.iterdir())
    result = {"out": str(out), "bytes": size} | description.model_dump(exclude={"config"})
    text = f"{out}: {description.kind} model for {len(description.classes)} tasks, {size:,} bytes"
    show(result, text, printing or Printing())
