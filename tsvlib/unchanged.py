"""What was found out of a file holds until the file changes: digests are not taken again of files that did not.

A file counts as unchanged while its place, size, inode and times of change (content and inode) are the same, as git and
DVC have it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint
from .store import Store, digest_of, file_digest
from .tensors import DTYPE_NAMES

KIND = "unchanged"
_SECONDS_UNTIL_SETTLED = 2  # a file that changed just now may change again within one tick of its clock


def known_file_digest(store: Store, path: Path) -> str:
    """SHA-256 of a file's content."""
    return str(_known(store, path, "sha256", lambda: file_digest(path)))


def know_digests(checkpoint: Checkpoint, store: Store | None) -> None:
    """Have a checkpoint know its digest and those of its tensors; reads them all where they are not known yet."""
    if store is None or checkpoint.path is None or checkpoint.shards:
        checkpoint.digest  # noqa: B018 - it keeps what it finds
        return

    def digests() -> dict[str, str]:
        return {name: checkpoint.tensor_digest(name) for name in checkpoint}

    specs = {name: [DTYPE_NAMES.get(spec.dtype), spec.shape] for name, spec in checkpoint.specs.items()}
    about = digest_of(json.dumps(specs, sort_keys=True))  # the same file may be read under other names
    checkpoint.know(_known(store, checkpoint.path, f"tensors {about}", digests))


def is_outdated(record: dict[str, Any]) -> bool:
    """Whether a record of this kind is of a file that has changed or gone."""
    try:
        return _state(Path(record["path"])) != record["state"]
    except (OSError, KeyError, TypeError):
        return True


def _known(store: Store, path: Path, what: str, find: Callable[[], Any]) -> Any:
    state = _state(path)
    key = digest_of(f"{what} {path.resolve()} {state}")
    if record := store.record(KIND, key):
        return record["found"]
    found = find()
    newest = max(state[2:]) / 1e9
    if _state(path) == state and newest < time.time() - _SECONDS_UNTIL_SETTLED:
        store.write_record(KIND, key, {"path": str(path.resolve()), "state": state, "found": found})
    return found


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
