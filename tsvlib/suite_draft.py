"""Drafting a suite from a folder of checkpoints and a folder of data: matching names, guessing classes, saying what
could not be matched. The result is YAML with comments, to be read and corrected by its user."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .checkpoint import open_location
from .data import SPLITS, Reader, open_data
from .data.classes import plain
from .data.public import public_datasets
from .errors import DataError, SuiteError, TSVError
from .sources import locate_path

_BASE_NAMES = ("base", "zeroshot", "pretrained", "pretrain", "openai")
_MOST_CLASSES_LISTED = 50
_CONFIG = "open_clip_config.json"
_ENCODER = "encoder.safetensors"  # beside the whole model, as the lab lays it out


@dataclass
class Draft:
    """A suite's YAML, and what its user has to look after."""

    text: str
    tasks: list[str]
    unmatched_checkpoints: list[str] = field(default_factory=list)
    unmatched_data: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def draft_suite(
    checkpoints: Path,
    data: Path | None,
    out: Path,
    *,
    name: str | None = None,
    base: str | None = None,
    model: str | None = None,
    weights: str | None = None,
) -> Draft:
    """Draft a suite file; nothing is written.

    Args:
        checkpoints: a folder of fine-tuned checkpoints, files or folders, and perhaps the base.
        data: a folder of data sets, each a folder named like its checkpoint; None for public ones alone.
        out: where the file will lie; paths in it start there.
        name: of the suite; by default that of the file.
        base: the base, if it is not in ``checkpoints`` under a usual name (base, zeroshot, pretrained, ...); like
            ``model``, as it is to be written in the file.
        model: open_clip's name, or a folder; by default the folder with open_clip_config.json in ``checkpoints``.
        weights: the whole model, where ``model`` is open_clip's name.

    Raises:
        SuiteError: no checkpoint, no base, no model, or no task whose data was found.
    """
    found = _checkpoints(checkpoints)
    if base is None:
        chosen = next((stem for stem in found if _key(stem) in _BASE_NAMES), None)
        if chosen is None:
            raise SuiteError(f"{checkpoints}: which is the base? Name it with --base, or call it base.safetensors.")
        path = found.pop(chosen)
        encoder = path / _ENCODER
        base = _written(encoder if encoder.is_file() else path, out)
    model = model or _model_folder(checkpoints, out)
    if weights is None and not (out.parent / model).is_dir():
        weights = f"open-clip://{model}/openai"
    found = {stem: path for stem, path in found.items() if not _is(path, base, out) and not _is(path, model, out)}
    readers = _data_sets(data) if data else {}
    if not found:  # nothing but the base: every data set is a task to fine-tune on
        found = {task: checkpoints / f"{task}.safetensors" for task in readers}
    matches = {stem: _match(stem, readers) for stem in found}
    draft = Draft("", [])
    if missing := [stem for stem, path in found.items() if not path.exists()]:
        draft.notes.append(f"there are no fine-tunes yet; 'tsv finetune --suite {out} --task {missing[0]}' makes one.")
    tasks = []
    for stem, path in found.items():
        matched = matches[stem]
        public = None if matched else _match(stem, public_datasets())
        if matched:
            draft.tasks.append(matched)
            tasks.append(_task(matched, _written(path, out), readers[matched], out, draft))
        elif public:
            draft.tasks.append(public)
            tasks.append(_public_task(public, _written(path, out)))
            draft.notes.append(f"{stem}: no data of its own; taken for the public data set {public!r}.")
        else:
            draft.unmatched_checkpoints.append(stem)
    draft.unmatched_data = sorted(readers.keys() - set(matches.values()))
    if not tasks:
        raise SuiteError(
            f"{checkpoints}: no checkpoint is named like a data set of {data}. Checkpoints: {', '.join(found)}; "
            f"data sets: {', '.join(readers) or 'none'}. Give both the same names."
        )
    if len(set(draft.tasks)) < len(draft.tasks):
        twice = next(task for task in draft.tasks if draft.tasks.count(task) > 1)
        stems = ", ".join(stem for stem, matched in matches.items() if matched == twice)
        raise SuiteError(f"{checkpoints}: more than one checkpoint is named like the data set {twice!r}: {stems}.")
    draft.text = _head(name or out.stem, model, weights, base) + "".join(tasks) + _rest(draft)
    return draft


def _checkpoints(folder: Path) -> dict[str, Path]:
    """Stem -> file or folder of everything that can be opened as a checkpoint."""
    if not folder.is_dir():
        raise SuiteError(f"{folder}: no such folder of checkpoints.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path.name == "model.safetensors" and (folder / _CONFIG).is_file()):
            continue
        try:
            open_location(locate_path(path))
        except TSVError:
            continue
        found[path.stem if path.is_file() else path.name] = path
    if not found:
        raise SuiteError(f"{folder}: holds no checkpoint that can be read.")
    return found


def _data_sets(folder: Path) -> dict[str, Reader]:
    if not folder.is_dir():
        raise SuiteError(f"{folder}: no such folder of data.")
    found: dict[str, Reader] = {}
    for path in sorted(below for below in folder.iterdir() if below.is_dir() and not below.name.startswith(".")):
        try:
            reader = open_data(path)
            if any(reader.files(split) for split in SPLITS):
                found[path.name] = reader
        except DataError:
            continue
    return found


def _model_folder(checkpoints: Path, out: Path) -> str:
    folders = [checkpoints, *(below for below in sorted(checkpoints.iterdir()) if below.is_dir()), checkpoints.parent]
    for folder in folders:
        if (folder / _CONFIG).is_file():
            return _written(folder, out)
    raise SuiteError(
        f"{checkpoints}: which model is it? Name it with --model, as open_clip does (ViT-B-32-quickgelu for OpenAI's "
        f"weights), or by a folder with {_CONFIG}."
    )


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _match(stem: str, names: Iterable[str] | Mapping[str, object]) -> str | None:
    """The data set that a checkpoint is named after: the same name, else the longest that its name contains."""
    same = [name for name in names if _key(name) == _key(stem)]
    words = re.split(r"[^a-z0-9]+", stem.lower())
    within = [name for name in names if _key(name) in words or (len(_key(name)) > 3 and _key(name) in _key(stem))]
    return max(same or within, key=len, default=None)


def _is(path: Path, written: str, out: Path) -> bool:
    other = out.parent / written
    return other.exists() and path.samefile(other)


def _written(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out.parent)).as_posix()


def _head(name: str, model: str, weights: str | None, base: str) -> str:
    lines = [
        "# A suite: one base, its fine-tunes, and the data that each is evaluated on. Every entry: docs/suites.md.",
        "# Check it with 'tsv suites check FILE'; paths start at this file's folder.",
        f"name: {_quoted(name)}",
        f"model: {_quoted(model)}   # open_clip's name, or a folder with {_CONFIG}",
    ]
    if weights:
        lines.append(f"weights: {_quoted(weights)}   # the whole model; its text tower makes the heads")
    lines += [f"base: {_quoted(base)}   # what all were fine-tuned from", "tasks:", ""]
    return "\n".join(lines)


def _task(name: str, checkpoint: str, reader: Reader, out: Path, draft: Draft) -> str:
    sizes = {split: len(reader.files(split)) for split in SPLITS if reader.files(split)}
    if "test" not in sizes:
        draft.notes.append(f"{name}: has no test split, only {', '.join(sizes)}.")
    lines = [
        f"  {_quoted(name)}:",
        f"    checkpoint: {_quoted(checkpoint)}",
        f"    data: {_quoted(_written(Path(reader.data.location), out))}   # splits found: {', '.join(sizes)}",
        *_classes(name, reader, draft),
        '    templates: ["a photo of a {}."]   # say what the pictures are; several are averaged',
        "",
    ]
    return "\n".join(lines)


def _classes(name: str, reader: Reader, draft: Draft) -> list[str]:
    carried = reader.classes
    if not carried:
        draft.notes.append(f"{name}: the data carries no class names; list them under 'classes', in label order.")
        return ["    # classes: [..., ...]   # the data carries none: list them here, in label order"]
    if len(carried) > _MOST_CLASSES_LISTED:
        return [f"    # classes: the {len(carried)} names that the data carries, such as {plain(carried[0])!r}"]
    pairs = [f"      {_quoted(one)}: {_quoted(plain(one))}" for one in carried]
    return ["    classes:   # what the data calls a class: what prompts call it; correct the right-hand sides", *pairs]


def _public_task(name: str, checkpoint: str) -> str:
    return (
        f"  {name}:\n    checkpoint: {_quoted(checkpoint)}\n    dataset: {name}   # public: {public_datasets()[name]}\n"
    )


def _rest(draft: Draft) -> str:
    lines = []
    if draft.unmatched_checkpoints:
        lines.append(f"# no data is named like these checkpoints: {', '.join(draft.unmatched_checkpoints)}")
    if draft.unmatched_data:
        lines.append(f"# no checkpoint is named like these data sets: {', '.join(draft.unmatched_data)}")
    return "".join(f"{line}\n" for line in lines)


def _quoted(text: str) -> str:
    """As YAML reads it back: bare where that is safe, else in double quotes."""
    return (
        text if re.fullmatch(r"[A-Za-z][\w./:-]*(?<!:)", text) and not _RESERVED.fullmatch(text) else json.dumps(text)
    )


_RESERVED = re.compile(r"(?i)y|n|yes|no|on|off|true|false|null")
