"""``tsv convert``"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..checkpoint import Checkpoint, TensorSpec, open_checkpoint, write_checkpoint
from ..names import naming_of, to_hugging_face, to_open_clip
from ..progress import Progress
from .options import Printing, output_path
from .printing import progress, show

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def convert(
    checkpoint: str,
    /,
    *,
    out: Path,
    names: Literal["open_clip", "huggingface"] | None = None,
    base: str | None = None,
    dtype: Literal["fp16", "bf16", "fp32"] | None = None,
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
        tensors = _reported(converted, report)
        specs = {name: _cast(spec, dtype) for name, spec in converted.specs.items()}
        written = write_checkpoint(out, specs, tensors, converted.metadata)
    result = {
        "out": str(out), "bytes": out.stat().st_size, "digest": written.digest, "tensors": len(written),
        "names": {"from": naming_of(opened), "to": naming_of(written)},
    }  # fmt: skip
    show(result, f"{out}: {len(written)} tensors of {opened.source}, {out.stat().st_size:,} bytes", printing)


def _cast(spec: TensorSpec, dtype: str | None) -> TensorSpec:
    return TensorSpec(spec.shape, _DTYPES[dtype]) if dtype and spec.dtype.is_floating_point else spec


def _reported(checkpoint: Checkpoint, report: Progress) -> Iterator[tuple[str, Tensor]]:
    for done, name in enumerate(checkpoint, 1):
        yield name, checkpoint[name]
        report(name, done, len(checkpoint))
