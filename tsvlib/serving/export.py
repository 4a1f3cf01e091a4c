"""Everything that classifying takes, and nothing else, in one folder: weights, heads, class names, preprocessing.

| file | what |
|---|---|
| ``classifier.json`` | tasks, class names, open_clip's configuration, where it comes from |
| ``model.safetensors`` | the merged encoder, or the archive; the same bytes as the candidate's file |
| ``base.safetensors`` | of an archive: the base |
| ``router.safetensors`` | of an archive, if wanted: tells the task of an image that is asked about without one |
| ``heads.safetensors`` | a class vector for each class of each task; the text tower is not needed any more |
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ..archive import open_archive
from ..atomic import atomic_write
from ..cache import Cache
from ..checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from ..clip import load_clip
from ..errors import ArchiveError, CheckpointError
from ..head import kept_head
from ..routing import DiscriminantRouter
from ..suite import Suite
from ..tensors import TensorSpec
from .classifier import BASE, DESCRIPTION, HEADS, ROUTER, WEIGHTS, Description, Kind


def export_classifier(
    suite: Suite, candidate: str | Path, folder: Path, cache: Cache | None = None, router: Path | None = None
) -> Description:
    """Write the folder that :func:`open_classifier` reads; ``classifier.json`` comes last, so it is whole or not there.

    Args:
        suite: what the candidate was made for.
        candidate: a merged checkpoint or an archive.
        folder: to write to; made if it is not there.
        cache: where heads are found.
        router: of an archive, as ``tsv route --save`` wrote it.

    Raises:
        CheckpointError: the candidate is missing, or an archive of other tasks or another base.
        ArchiveError: the router is none, is of other tasks, or the candidate is no archive.
    """
    file, base = open_checkpoint(candidate), open_checkpoint(suite.base_uri)
    kind: Kind = "archive" if file.metadata.get("kind") == "archive" else "merged"
    if router:
        _check_router(DiscriminantRouter.load(router), router, candidate if kind == "archive" else None, suite)
    if kind == "archive":
        archive = open_archive(candidate)
        if missing := suite.tasks.keys() - set(archive.tasks):
            raise CheckpointError(f"{candidate}: has no task {', '.join(sorted(missing))} of suite {suite.name!r}.")
        archive.extract(archive.tasks[0], base)  # tells another base
        _copy(base, folder / BASE)
    _copy(file, folder / WEIGHTS)
    (folder / ROUTER).unlink(missing_ok=True)  # of an earlier export
    if router:
        _copy(open_checkpoint(router), folder / ROUTER)
    clip = load_clip(suite.clip_model, suite.clip_weights)
    classes = {task: suite.classes(task) for task in suite.tasks}
    heads = {task: kept_head(clip, names, suite.task(task).templates, cache)[0] for task, names in classes.items()}
    specs = {task: TensorSpec(tuple(head.shape), head.dtype) for task, head in heads.items()}
    write_checkpoint(folder / HEADS, specs, heads.items())
    description = Description(
        kind=kind,
        name=Path(candidate).stem,
        suite=suite.name,
        digest=file.digest,
        base_digest=base.digest,
        classes=classes,
        config=dict(clip.config),
    )
    with atomic_write(folder / DESCRIPTION) as out:
        out.write((description.model_dump_json(indent=1) + "\n").encode())
    return description


def _check_router(router: DiscriminantRouter, file: Path, archive: str | Path | None, suite: Suite) -> None:
    if archive is None:
        raise ArchiveError(f"{file}: a router goes with an archive; a merged model answers for every task.")
    if differing := sorted(set(router.tasks) ^ suite.tasks.keys()):
        raise ArchiveError(
            f"{file}: a router of other tasks than suite {suite.name!r} (differing: {', '.join(differing)}). Make one "
            f"with 'tsv route {archive} --suite {suite.name} --save FILE'."
        )


def _copy(checkpoint: Checkpoint, out: Path) -> None:
    """The same bytes, if they lie in one file of our own format."""
    path = checkpoint.path
    if path and path.suffix == ".safetensors" and not checkpoint.shards:
        with path.open("rb") as source, atomic_write(out) as target:
            shutil.copyfileobj(source, target)
    else:
        write_checkpoint(out, checkpoint.specs, checkpoint.items(), checkpoint.metadata)
