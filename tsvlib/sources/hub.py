"""Checkpoints on the Hugging Face hub: ``hf://org/repo[@revision][/file]``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from ..formats import choose_weights
from .failures import check_online, clear_errors
from .location import File, Location

_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?")
_BLOCK = 2**16


def locate_on_hub(uri: str, preferred: Sequence[str] = (), about: Mapping[str, Any] | None = None) -> Location:
    """A file of a repository, by default its weights, at the commit that the revision stands for now.

    Args:
        preferred: names of weights files to take before any other, where no file is named.
        about: what is known of the model beyond its weights.

    Raises:
        CheckpointError: no such repository, revision or file, or no access to it.
        UnreachableError: the hub does not answer, or this machine is offline.
    """
    address = _ADDRESS.fullmatch(uri)
    if not address:
        raise CheckpointError(
            f"{uri}: not an address on the hub; write hf://organisation/repository[@revision][/file]."
        )
    check_online(uri)
    repository, revision = address["repository"], address["revision"]
    commit, entries = _list(uri, repository, revision)
    folder, main = _choose(uri, address["file"], list(entries), preferred)

    def find(name: str) -> File:
        path = folder + name
        if path not in entries:
            raise CheckpointError(f"{uri}: the repository has no file {path!r} at {revision or 'its newest revision'}.")
        return _file(repository, commit, path, entries[path])

    names = [path.removeprefix(folder) for path in entries if path.startswith(folder)]
    return Location(uri, main, find, names, about or {})


def _list(uri: str, repository: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The commit, and what the hub tells of each file."""
    from huggingface_hub import HfApi  # slow to import, and reads HF_ENDPOINT when it is
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    with clear_errors(uri):
        try:
            found = HfApi(endpoint=_endpoint()).model_info(repository, revision=revision, files_metadata=True)
        except GatedRepoError as error:
            raise CheckpointError(
                f"{uri}: access to {repository} must be asked for on its page first, and HF_TOKEN set."
            ) from error
        except RevisionNotFoundError as error:
            raise CheckpointError(
                f"{uri}: {repository} has no revision {revision!r}. Check its branches and tags."
            ) from error
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{uri}: the hub has no repository {repository}, or it is private; check the name, or set HF_TOKEN."
            ) from error
    return found.sha or "", {sibling.rfilename: sibling for sibling in found.siblings or []}


def _choose(uri: str, path: str | None, paths: list[str], preferred: Sequence[str]) -> tuple[str, str]:
    """The folder, with its slash, and the main file in it."""
    if path in paths:
        folder, slash, name = str(path).rpartition("/")
        return folder + slash, name
    folder = f"{path.rstrip('/')}/" if path else ""
    names = [name.removeprefix(folder) for name in paths if name.startswith(folder)]
    names = [name for name in names if "/" not in name]
    if path and not names:
        raise CheckpointError(f"{uri}: the repository has no file {path!r}. It has: {', '.join(sorted(paths)[:20])}.")
    return folder, next((name for name in preferred if name in names), None) or choose_weights(names, uri)


def _file(repository: str, commit: str, path: str, entry: Any) -> File:
    from huggingface_hub import HfFileSystem

    filesystem = HfFileSystem(endpoint=_endpoint())
    how = {"block_size": _BLOCK, "cache_type": "readahead", "size": entry.size}  # it would ask for the size again
    return File(
        uri=f"hf://{repository}@{commit[:12]}/{path}",
        open=lambda: filesystem.open(f"{repository}@{commit}/{path}", "rb", **how),
        size=entry.size,
        sha256=entry.lfs.sha256 if entry.lfs else None,
        version=commit,
    )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
