"""How often the test images were asked: a note for each suite of every version of a candidate measured on them.

A candidate that is changed and measured on test again and again is in the end chosen on test. The notes do not forbid
it; they tell.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from filelock import FileLock

from .atomic import atomic_write
from .store import Store, digest_of
from .suite import Suite


def note_test_use(store: Store, suite: Suite, candidate: str, digest: str) -> int:
    """Note that a candidate's version was measured on a suite's test images.

    Args:
        store: where the notes are kept, in ``test-uses/``.
        suite: by its name and its tasks' data.
        candidate: a name, the same for all versions.
        digest: of the version.

    Returns:
        How many versions of it have been, this one among them.
    """
    file = _file(store, suite)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        notes = _read(file)
        versions = notes.setdefault(candidate, {})
        if digest not in versions:
            versions[digest] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            with atomic_write(file) as opened:
                opened.write(json.dumps(notes, indent=1).encode())
    return len(versions)


def test_uses(store: Store, suite: Suite) -> dict[str, dict[str, str]]:
    """Candidate -> digest of a version -> when it was first measured on the test images (UTC)."""
    return _read(_file(store, suite))


def _file(store: Store, suite: Suite) -> Path:
    data = {name: task.data.model_dump(mode="json") for name, task in suite.tasks.items()}
    return store.root / "test-uses" / f"{suite.name}-{digest_of(json.dumps(data, sort_keys=True))[:12]}.json"


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
