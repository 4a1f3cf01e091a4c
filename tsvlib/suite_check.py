"""Checking a suite before any work: its model, checkpoints and data, as far as they can be seen from here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import open_clip
import torch

from .clip import ENCODER_PREFIX
from .data import SPLITS, open_data
from .data.decoding import UnreadableImage, decode_image
from .errors import CheckpointError, SuiteError, TSVError, UnreachableError, did_you_mean
from .estimate import MatrixWork, merge_seconds, peak_bytes
from .images import LabelledImages
from .key_policy import KeyPolicy
from .parallel import in_parallel
from .plan import plan
from .progress import Progress
from .sources import locate, scheme_of
from .sources.failures import offline
from .suite import Suite


@dataclass
class CheckedTask:
    """What was seen of one task."""

    checkpoint: str
    data: str
    classes: int | None = None
    """How many; None where they are read from data that lies elsewhere."""
    images: dict[str, int] = field(default_factory=dict)
    """Split -> number of images, of those that were looked at."""


@dataclass
class SuiteCheck:
    """What was found."""

    suite: str
    family: str
    tasks: dict[str, CheckedTask]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    merge: dict[str, float] = field(default_factory=dict)
    """What a tsv-m merge is foreseen to take: matrices, peak_memory_bytes, seconds."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return asdict(self)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """What is wrong becomes a problem; what cannot be reached is for the caller to judge."""
        try:
            yield
        except UnreachableError:
            raise
        except TSVError as error:
            self.problems += str(error).splitlines()


def check_suite(
    suite: Suite, *, online: bool = False, images: bool = False, progress: Progress | None = None
) -> SuiteCheck:
    """Look at everything that a suite names.

    Args:
        suite: what to check.
        online: also ask for the headers of checkpoints and fetch data that lie elsewhere.
        images: decode every image, naming each that cannot be.
        progress: called with (task, tasks done, tasks).
    """
    found = SuiteCheck(
        suite.name,
        suite.family,
        {name: CheckedTask(uri, suite.data(name).location) for name, uri in suite.checkpoints.items()},
    )
    with nullcontext() if online else offline():
        with found.noting():
            found.merge = _foreseen(suite)
        _check_checkpoints(suite, found, online)
        elsewhere = 0
        for done, (name, task) in enumerate(found.tasks.items(), 1):
            try:
                with found.noting():
                    _check_data(suite, name, task, found, images)
            except UnreachableError as error:
                elsewhere += 1
                if online:
                    found.problems.append(str(error))
            if progress:
                progress(name, done, len(found.tasks))
        if elsewhere and not online:
            found.notes.append(f"{elsewhere} of {len(found.tasks)} data sets lie elsewhere; --online fetches them.")
    return found


def _check_checkpoints(suite: Suite, found: SuiteCheck, online: bool) -> None:
    uris = {"": suite.base_uri, **suite.checkpoints}
    if twice := {task: uri for task, uri in uris.items() if list(uris.values()).count(uri) > 1}:
        found.problems.append(f"{next(iter(twice.values()))}: is named by {', '.join(t or 'base' for t in twice)}.")
    elsewhere = {task: uri for task, uri in uris.items() if scheme_of(uri) != "file"}
    if online or not elsewhere:
        planned = plan(suite.base_uri, suite.checkpoints, key_policy=suite.key_policy, values=False)
        found.problems += planned.problems
        found.notes += planned.notes
        return
    for uri in (*uris.values(), *filter(None, [suite.clip_weights])):
        try:
            locate(uri)
        except UnreachableError:
            continue  # it is well written; more cannot be said without a network
        except CheckpointError as error:
            found.problems.append(str(error))
    found.notes.append(f"{len(elsewhere)} of {len(uris)} checkpoints lie elsewhere; --online reads their headers.")


def _check_data(suite: Suite, name: str, task: CheckedTask, found: SuiteCheck, decode: bool) -> None:
    described = suite.data(name)
    given = suite.task(name).classes
    task.classes = len(given) if given else None
    reader = open_data(described)
    for split in SPLITS:
        if split in described.sizes and not described.on_hub and not reader.files(split):
            found.problems.append(f"{described.location}: has no split {split}, the suite expects it.")
    task.classes = len(suite.classes(name))
    for split in ("train", "validation", "test"):
        if split == "test" or reader.files("train") or reader.files(split):
            loaded = suite.images(name, split)
            task.images[split] = len(loaded)
            if decode:
                found.problems += _unreadable(loaded)
            else:
                loaded.probe()
            if loaded.expected not in (None, len(loaded)):
                found.problems.append(f"{loaded.source}: has {len(loaded):,} images, not {loaded.expected:,}.")
        else:
            found.notes.append(f"{described.location}: no {split} images; fine-tuning and alpha=search need them.")


def _unreadable(images: LabelledImages) -> list[str]:
    def look(row: int) -> str:
        try:
            decode_image(next(images.encoded([row])))
        except UnreadableImage as error:
            return f"{images.source}: {images.name(row)} cannot be decoded: {error}."
        return ""

    return [told for _, told in in_parallel(look, range(len(images))) if told]


def _foreseen(suite: Suite) -> dict[str, float]:
    """Of a tsv-m merge, from the model's configuration alone."""
    shapes = _encoder_shapes(suite)
    tasks, threads = len(suite.tasks), len(os.sched_getaffinity(0))
    key_policy, works = suite.key_policy or KeyPolicy(), []
    for name, shape in shapes.items():
        for _ in range(count := key_policy.count(name, shape)):
            rows, columns = shape[0] // count, math.prod(shape[1:])
            works.append(MatrixWork((rows, columns), max(1, min(rows, columns) // tasks), tasks))
    sizes = [4 * math.prod(shape) for shape in shapes.values()]
    return {
        "matrices": len(works),
        "encoder_bytes": sum(sizes),
        "peak_memory_bytes": peak_bytes(works, max(sizes), threads),
        "seconds": merge_seconds(works, (tasks + 2) * sum(sizes), threads),
    }


def _encoder_shapes(suite: Suite) -> dict[str, tuple[int, ...]]:
    """Parameter -> shape of the image encoder, which is built without memory for its values."""
    named = suite.clip_model
    if isinstance(named, str):
        config = open_clip.get_model_config(named)
        if config is None:
            known: list[str] = open_clip.list_models()
            raise SuiteError(f"model {named!r}: open_clip knows no such model.{did_you_mean(named, known)}")
    else:
        file = named / "open_clip_config.json"
        if not file.is_file():
            raise SuiteError(f"{named}: no open_clip_config.json there. Make the model, or name one of open_clip's.")
        config = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
    of_clip = {name: config[name] for name in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if name in config}
    with torch.device("meta"):
        model = open_clip.CLIP(**of_clip)
    return {f"{ENCODER_PREFIX}{name}": tuple(tensor.shape) for name, tensor in model.visual.state_dict().items()}
