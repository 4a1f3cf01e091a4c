"""Does a file hold what its header says? Answered by making it again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .archive import open_archive, rebuild
from .checkpoint import Checkpoint, open_checkpoint
from .errors import CheckpointError, MismatchError
from .key_policy import KeyPolicy
from .merging import merge
from .progress import Progress

ROUNDING = 1e-5
"""Largest difference, relative to the largest value of a tensor, that another machine's arithmetic explains."""


@dataclass(frozen=True)
class Verification:
    """How a file compares with what its header says it is made of."""

    source: str
    recorded: str
    """Digest of the file."""
    rebuilt: str
    """Digest of what its inputs and settings give here."""
    largest_difference: float
    """Over all tensors, relative to the largest value of each."""
    furthest: str | None
    """The tensor that differs most."""

    @property
    def verdict(self) -> str:
        """identical, to the last bit; equal, up to rounding; or different."""
        if self.recorded == self.rebuilt:
            return "identical"
        return "equal" if self.largest_difference <= ROUNDING else "different"


def verify(
    uri: str | Path,
    base: str | Path | None = None,
    tasks: Mapping[str, str | Path] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Rebuild a merged file or an archive from its recorded inputs and settings, and compare.

    Args:
        uri: the file.
        base: where its base lies now; where it was, by default.
        tasks: where some of its fine-tunes lie now.
        progress: of fetching and rebuilding.

    Raises:
        CheckpointError: the file does not say what it is made of, or an input is not to be had.
        MismatchError: an input has not the content that it had; names each.
    """
    made = open_checkpoint(uri, progress)
    build = _builder(made)
    whole, tuned = _open_inputs(made, base, tasks or {}, progress)
    with tempfile.TemporaryDirectory(prefix="tsv-verify-") as folder:
        rebuilt = build(whole, tuned, Path(folder) / "rebuilt.safetensors", progress)
        difference, furthest = _largest_difference(made, rebuilt)
        return Verification(made.source, made.digest, rebuilt.digest, difference, furthest)


Build = Callable[[Checkpoint, dict[str, Checkpoint], Path, Progress | None], Checkpoint]


def _builder(made: Checkpoint) -> Build:
    """How to make the file again, by what its header says."""
    header = made.metadata
    if header.get("kind") == "archive":
        archive = open_archive(made.path or made.source)
        return lambda base, tasks, out, progress: rebuild(archive, base, tasks, out=out, progress=progress).file
    try:
        settings = {"key_policy": KeyPolicy.model_validate(header["key_policy"]), "mode": header["mode"]}
        parameters = {name: value for name, value in header["parameters"].items() if value is not None}
        if header["kind"] == "merged":
            method, dtype = header["method"], header.get("dtype")
            return lambda base, tasks, out, progress: merge(
                base, tasks, method, out=out, dtype=dtype, progress=progress, **settings, **parameters
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{made.source}: its header does not say how it was made ({type(error).__name__}: {error}), so it cannot "
            "be rebuilt. Files that 'tsv merge' or 'tsv compress' wrote can."
        ) from error
    raise CheckpointError(f"{made.source}: is {header['kind']!r}, which cannot be rebuilt; a merge or an archive can.")


def _open_inputs(
    made: Checkpoint, base: str | Path | None, tasks: Mapping[str, str | Path], progress: Progress | None
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    header = made.metadata
    recorded = header.get("sources", {})
    places = {task: tasks.get(task) or recorded.get("tasks", {}).get(task) for task in header["tasks"]}
    places[""] = base or recorded.get("base")
    if unknown := sorted(set(tasks) - set(header["tasks"])):
        raise CheckpointError(f"{made.source}: has no task {unknown[0]!r}; it has {', '.join(header['tasks'])}.")
    if nowhere := [task or "the base" for task, place in places.items() if not place]:
        raise CheckpointError(
            f"{made.source}: its header does not say where {', '.join(nowhere)} lies; give --base and --task."
        )
    opened = {task: open_checkpoint(place, progress) for task, place in places.items() if place}
    digests = {**header["tasks"], "": header["base"]["digest"]}
    problems = [
        f"{checkpoint.source}: is not what {made.source} was made from as {f'task {task!r}' if task else 'the base'}: "
        f"its digest is {checkpoint.digest[:12]}…, recorded is {digests[task][:12]}…. Give the place of the right file."
        for task, checkpoint in opened.items()
        if checkpoint.digest != digests[task]
    ]
    if problems:
        raise MismatchError(problems)
    whole = opened.pop("")
    return whole, opened


def _largest_difference(made: Checkpoint, rebuilt: Checkpoint) -> tuple[float, str | None]:
    if made.specs != rebuilt.specs:
        differing = {name for name, _ in made.specs.items() ^ rebuilt.specs.items()}
        return float("inf"), min(differing)
    largest, furthest = 0.0, None
    for name, spec in made.specs.items():
        one, other = made[name].double(), rebuilt[name].double()
        if torch.equal(one, other) or not spec.nbytes:
            continue
        scale = float(one.abs().max()) or 1.0
        difference = float((one - other).abs().max()) / scale
        if not difference <= largest:  # a NaN is a difference
            largest, furthest = difference, name
    return largest, furthest
