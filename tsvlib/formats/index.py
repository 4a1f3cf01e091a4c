"""The index of a sharded checkpoint: a JSON file that tells in which file of the same folder each tensor lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..errors import CheckpointError
from .safetensors import METADATA_KEY

INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True)
class ShardIndex:
    """Name of a tensor -> name of its file, and the metadata of the whole."""

    weight_map: dict[str, str]
    metadata: dict[str, Any]

    @property
    def shards(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(set(self.weight_map.values()))


def parse_index(text: bytes, source: str) -> ShardIndex:
    """Parse an index as Hugging Face libraries write it.

    Raises:
        CheckpointError: it is no index, or names a file outside its own folder.
    """
    try:
        content = json.loads(text)
        weight_map = content["weight_map"]
        metadata = json.loads(content.get("metadata", {}).get(METADATA_KEY, "{}"))
        sound = all(isinstance(file, str) for file in weight_map.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: not an index of a sharded checkpoint ({type(error).__name__}: {error}); it needs a "
            "'weight_map' of names to files. Fetch it again."
        ) from error
    if not sound or not weight_map:
        raise CheckpointError(f"{source}: its 'weight_map' is empty or maps to something that is no file name.")
    for name, file in weight_map.items():
        if PurePosixPath(file).name != file or "\\" in file or file in ("", ".", ".."):
            raise CheckpointError(
                f"{source}: refused: key {name!r} is said to lie in {file!r}, outside the folder of the index."
            )
    return ShardIndex(weight_map, metadata)
