"""``tsv extract``"""

from __future__ import annotations

from pathlib import Path

from ..archive import open_archive
from ..checkpoint import open_checkpoint, write_checkpoint
from .options import Printing, output_path
from .printing import show


def extract(
    archive: Path, /, *, task: str, base: str, out: Path, force: bool = False, printing: Printing | None = None
) -> None:
    """Give back one fine-tune from an archive as a checkpoint of its own.

    Args:
        archive: a file that 'tsv compress' wrote.
        task: whose model to give back.
        base: the checkpoint that the archive was made from.
        out: the safetensors file to write.
        force: replace the file if it exists.
    """
    output_path(out, force)
    model = open_archive(archive).extract(task, open_checkpoint(base))
    written = write_checkpoint(out, model.specs, model.items(), model.metadata)
    result = {"out": str(out), "bytes": out.stat().st_size, "digest": written.digest, "task": task}
    show(result, f"{out}: the model of task {task!r}, {out.stat().st_size:,} bytes", printing or Printing())
