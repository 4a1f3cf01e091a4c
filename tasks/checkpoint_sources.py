"""Checkpoints that MLflow or DVC keep: plug-ins of tsvlib, which itself knows neither.

They are registered in pyproject.toml as entry points of the group ``tsvlib.sources``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from tsvlib.errors import CheckpointError
from tsvlib.formats import choose_weights
from tsvlib.sources import File, Location, check_online, clear_errors, remote_file

_DVC_ADDRESS = re.compile(r"dvc://(?P<repository>[^#]*)#(?P<path>[^@]+)(@(?P<revision>.+))?")


def locate_in_mlflow(uri: str) -> Location:
    """A weights file among the artifacts of ``models:/NAME/VERSION``, ``models:/NAME@ALIAS`` or ``runs:/RUN/PATH``.

    Raises:
        CheckpointError: there is no such model, run or file, or more than one weights file.
        UnreachableError: the tracking server does not answer.
    """
    _check_reachable(uri)
    with clear_errors(uri):
        artifacts = dict(_artifacts(uri)) or _as_file(uri)
        version = _model_version(uri)
        if not artifacts:
            raise CheckpointError(f"{uri}: MLflow has no artifacts there. Check the name, the version and the path.")
        main = "" if "" in artifacts else choose_weights(list(artifacts), uri)

    def find(path: str) -> File:
        name = f"{main.rpartition('/')[0]}/{path}".strip("/") if main else ""
        if name not in artifacts:
            raise CheckpointError(f"{uri}: MLflow has no artifact {name!r} there.")
        address = f"{uri.rstrip('/')}/{name}".rstrip("/")
        return File(address, lambda: _download(address), artifacts[name], version=version)

    return Location(uri, main.rpartition("/")[2] or uri.rpartition("/")[2], find)


def _check_reachable(uri: str) -> None:
    """Say at once that this machine is offline, where the tracking server is not on it."""
    import mlflow

    address = urlsplit(mlflow.get_tracking_uri())
    if address.scheme in ("http", "https"):
        check_online(uri)


def _model_version(uri: str) -> str:
    """What changes when a registered model does; nothing tells it of a run, whose artifacts may be logged again."""
    import mlflow

    place = uri.partition(":/")[2].strip("/")
    if not uri.startswith("models:/"):
        return ""
    client = mlflow.MlflowClient()
    name, at, alias = place.partition("@")
    if at:
        found = client.get_model_version_by_alias(name, alias)
    else:
        name, _, number = place.partition("/")
        if not number.isdecimal():
            return ""
        found = client.get_model_version(name, number)
    return f"{found.name}/{found.version} of {found.creation_timestamp} at {found.source}"


def _artifacts(uri: str, folder: str = "") -> Iterator[tuple[str, int | None]]:
    """Path below ``uri`` and size of every file."""
    from mlflow.artifacts import list_artifacts  # seconds to import

    for found in list_artifacts(artifact_uri=uri):
        if found.is_dir:
            name = found.path.rpartition("/")[2]
            yield from _artifacts(f"{uri.rstrip('/')}/{name}", f"{folder}{name}/")
        else:
            yield folder + found.path.rpartition("/")[2], found.file_size


def _as_file(uri: str) -> dict[str, int | None]:
    """Its size under the empty path, if ``uri`` is itself a file of a run."""
    from mlflow.artifacts import list_artifacts

    _, _, place = uri.partition(":/")
    run, _, path = place.strip("/").partition("/")
    if not uri.startswith("runs:/") or not path:
        return {}
    beside = list_artifacts(run_id=run, artifact_path=path.rpartition("/")[0] or None)
    sizes = [found.file_size for found in beside if not found.is_dir and found.path == path]
    return {"": sizes[0]} if sizes else {}


def _download(address: str) -> BinaryIO:
    """Open a copy that vanishes when it is closed."""
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix="tsv-mlflow-") as folder:
        return Path(download_artifacts(artifact_uri=address, dst_path=folder)).open("rb")


def locate_in_dvc(uri: str) -> Location:
    """A file or folder that DVC tracks: ``dvc://REPOSITORY#PATH[@REVISION]``; the repository is a path or a git URL.

    Raises:
        CheckpointError: there is no such repository, revision or file, or its content is in no cache or remote.
    """
    address = _DVC_ADDRESS.fullmatch(uri)
    if not address:
        raise CheckpointError(
            f"{uri}: write it as dvc://REPOSITORY#PATH@REVISION, such as dvc://.#models/a.safetensors."
        )
    from dvc.api import DVCFileSystem  # seconds to import

    with clear_errors(uri):
        filesystem = DVCFileSystem(address["repository"] or ".", rev=address["revision"])
        path = address["path"].strip("/")
        folder, _, main = path.rpartition("/")
        names: list[str] = []
        if filesystem.isdir(path):
            names = [found.rpartition("/")[2] for found in filesystem.ls(path, detail=False)]
            folder, main = path, choose_weights(names, uri)

    def find(name: str) -> File:
        path = f"{folder}/{name}".strip("/")
        revision = f"@{address['revision']}" if address["revision"] else ""
        return remote_file(filesystem, path, f"dvc://{address['repository']}#{path}{revision}")

    return Location(uri, main, find, names)
