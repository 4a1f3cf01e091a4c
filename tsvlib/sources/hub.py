"""Checkpoints on the Hugging Face hub: ``hf://org/repo[@revision][/file]``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    revision = address["revision"]
    repository = find_repository(uri, address["repository"], revision)
    entries = repository.entries
    folder, main = _choose(uri, address["file"], list(entries), preferred)

    def find(name: str) -> File:
        path = folder + name
        if path not in entries:
            raise CheckpointError(f"{uri}: the repository has no file {path!r} at {revision or 'its newest revision'}.")
        return repository.file(path)

    names = [path.removeprefix(folder) for path in entries if path.startswith(folder)]
    return Location(uri, main, find, names, about or {})


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    kind: Literal["model", "dataset"]
    commit: str
    entries: Mapping[str, Any]
    """Path -> what the hub tells of that file."""
    card: Mapping[str, Any]
    """The structured part of its README."""

    def file(self, path: str) -> File:
        """One of its files, at this commit."""
        from huggingface_hub import HfFileSystem

        entry, filesystem = self.entries[path], HfFileSystem(endpoint=_endpoint())
        how = {"block_size": _BLOCK, "cache_type": "readahead", "size": entry.size}  # it would ask for the size again
        folder = "datasets/" if self.kind == "dataset" else ""
        return File(
            uri=f"hf://{folder}{self.name}@{self.commit[:12]}/{path}",
            open=lambda: filesystem.open(f"{folder}{self.name}@{self.commit}/{path}", "rb", **how),
            size=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            version=self.commit,
        )


def find_repository(
    uri: str, name: str, revision: str | None = None, kind: Literal["model", "dataset"] = "model"
) -> Repository:
    """A repository at the commit that the revision stands for now; nothing of it is fetched but the list of files.

    Args:
        uri: how messages name it.
        name: organisation/name.
        revision: branch, tag or commit; the newest by default.
        kind: of the repository.

    Raises:
        CheckpointError: no such repository or revision, or no access to it.
        UnreachableError: the hub does not answer, or this machine is offline.
    """
    check_online(uri)
    from huggingface_hub import HfApi  # slow to import, and reads HF_ENDPOINT when it is
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    with clear_errors(uri):
        try:
            api = HfApi(endpoint=_endpoint())
            ask = api.dataset_info if kind == "dataset" else api.model_info
            found = ask(name, revision=revision, files_metadata=True)
        except GatedRepoError as error:
            raise CheckpointError(
                f"{uri}: access to {name} must be asked for on its page first, and HF_TOKEN set."
            ) from error
        except RevisionNotFoundError as error:
            raise CheckpointError(
                f"{uri}: {name} has no revision {revision!r}. Check its branches and tags."
            ) from error
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{uri}: the hub has no repository {name}, or it is private; check the name, or set HF_TOKEN."
            ) from error
    entries = {sibling.rfilename: sibling for sibling in found.siblings or []}
    return Repository(name, kind, found.sha or "", entries, found.card_data.to_dict() if found.card_data else {})


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


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")
