"""A merge in parts, each a task of its own, so that several processes or machines can share it.

The workers read the checkpoints, and write what they make, by path: all see the same store.
"""

from __future__ import annotations

from typing import Any

from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.key_policy import KeyPolicy
from tsvlib.merging import merge
from tsvlib.parts import join

from .blob import Blob
from .caching import cached_task
from .merge import NUMERICS, made
from .models import Made


@cached_task("tsvlib.checkpoint", "tsvlib.tensors")
def content_digest(file: Blob) -> str:
    """Digest of a checkpoint's values: taken once, not again for each part."""
    return open_checkpoint(file.path).digest


@cached_task(*NUMERICS)
def merge_part(
    base: Blob,
    tasks: dict[str, Blob],
    digests: dict[str, str],
    method: str,
    parameters: dict[str, Any],
    names: list[str],
    key_policy: KeyPolicy | None = None,
    device: str = "cpu",
) -> Made:
    """Merge some of the parameters, on one core.

    Args:
        base: what the tasks were fine-tuned from.
        tasks: name -> fine-tuned checkpoint.
        digests: task -> digest of its values; of the base under the empty name.
        method: by which they are merged.
        parameters: of the method.
        names: the parameters to merge.
        key_policy: which parameters count as matrices.
        device: of the matrix work.
        key_policy: which parameters count as matrices.
    """
    return made(
        lambda path, cache: merge(
            _opened(base, digests[""]),
            {name: _opened(blob, digests[name]) for name, blob in tasks.items()},
            method,
            out=path,
            only=names,
            key_policy=key_policy,
            threads=1,
            cache=cache,
            device=device,
            **parameters,
        )
    )


@cached_task("tsvlib.parts", "tsvlib.checkpoint")
def join_parts(parts: list[Blob]) -> Made:
    """Join the parts of a merge to the file that a merge in one go would have made."""
    return made(lambda path, cache: join([open_checkpoint(part.path) for part in parts], path))


def _opened(file: Blob, digest: str) -> Checkpoint:
    """A checkpoint whose digest is known already."""
    checkpoint = open_checkpoint(file.path)
    checkpoint.digest = digest
    return checkpoint
