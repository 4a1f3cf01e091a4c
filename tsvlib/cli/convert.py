"""``tsv convert``"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from ..names import naming_of, to_hugging_face, to_open_clip
from ..progress import Progress
from ..tensors import FloatDtype, TensorSpec, cast
from .options import Printing, output_path
from .printing import progress, show


def convert(
    checkpoint: str,
    /,
    *,
    out: Path,
    names: Literal["open_clip", "huggingface"] | None = None,
    base: str | None = None,
    dtype: FloatDtype | None = None,
    force: bool = False,
    printing: Printing | None = None,
) -> None:
    """Write a checkpoint of any format as safetensors, under open_clip's or Hugging Face's names.

    Args:
        checkpoint: a path or URI of any weights file; nothing in it is executed.
        out: the safetensors file to write.
        names: whose names to give CLIP's parameters; as they are by default. Other models keep theirs.
        base: an open_clip checkpoint to take from what a CLIPVisionModel lacks, such as the projection.
        dtype: of floating-point tensors; as they are by default.
        force: replace the file if it exists.
    """
    printing = printing or Printing()
    output_path(out, force)
    opened = open_checkpoint(checkpoint)
    converted = opened
    if names == "open_clip":
        converted = to_open_clip(opened, open_checkpoint(base) if base else None)
    elif names == "huggingface":
        converted = to_hugging_face(opened)
    with progress("convert", printing) as report:
        specs = {name: spec.as_float(dtype) for name, spec in converted.specs.items()}
        tensors = _cast(converted, specs, report)
        written = write_checkpoint(out, specs, tensors, converted.metadata)
    result = {
        "out": str(out), "bytes": out.stat().st_size, "digest": written.digest, "tensors": len(written),
        "names": {"from": naming_of(opened), "to": naming_of(written)},
    }  # fmt: skip
    show(result, f"{out}: {len(written)} tensors of {opened.source}, {out.stat().st_size:,} bytes", printing)


def _cast(checkpoint: Checkpoint, specs: Mapping[str, TensorSpec], report: Progress) -> Iterator[tuple[str, Tensor]]:
    for done, name in enumerate(checkpoint, 1):
        yield name, cast(checkpoint[name], specs[name].dtype, f"{checkpoint.source}: the key {name!r}")
        report(name, done, len(checkpoint))
