"""Class names: those of the suite, those that the data carries, and which label means which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from .reader import CLASSES_FILE, Label

ClassNames = Sequence[str] | Mapping[str, str]
"""A list in label order; or what the data calls a class (its name, or number in digits) -> what prompts call it."""


def plain(name: str) -> str:
    """A class name as prompts have it: words with spaces."""
    return " ".join(name.replace("_", " ").split())


def prompt_names(given: ClassNames | None, carried: Sequence[str] | None, source: str) -> list[str]:
    """The names that prompts are made of, in the order of the head.

    Args:
        given: by the suite.
        carried: by the data, in label order.
        source: of the data, for messages.

    Raises:
        DataError: neither names them, they are repeated, or the suite's are the data's own in another order.
    """
    if given is None:
        if not carried:
            raise DataError(
                f"{source}: carries no class names. List them under 'classes' of the suite's task, or in "
                f"{CLASSES_FILE} beside the data, in label order."
            )
        names = [plain(name) for name in carried]
    else:
        names = list(given.values()) if isinstance(given, Mapping) else list(given)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{source}: the class {repeated[0]!r} is named twice; give each class a name of its own.")
    if carried and isinstance(given, Sequence):
        own = [plain(name).lower() for name in carried]
        listed = [plain(name).lower() for name in names]
        if len(own) != len(listed):
            raise DataError(f"{source}: the suite lists {len(listed)} classes, the data has {len(own)}.")
        if own != listed and sorted(own) == sorted(listed):
            at = next(i for i, name in enumerate(own) if name != listed[i])
            raise DataError(
                f"{source}: the suite lists the classes in another order than the data: label {at} is {own[at]!r} "
                f"there, {listed[at]!r} in the suite. Put them in the data's order."
            )
    return names


def label_numbers(
    labels: Sequence[Label], given: ClassNames | None, carried: Sequence[str] | None, source: str
) -> list[int]:
    """Labels as positions in :func:`prompt_names`.

    Raises:
        DataError: a label that no class stands for; names how many and which.
    """
    position = _positions(given, carried, source)
    unknown = [label for label in labels if label not in position]
    if unknown:
        raise DataError(
            f"{source}: label {unknown[0]!r} has no class ({len(unknown):,} of {len(labels):,} images have such "
            f"labels). There are {len(set(position.values()))} classes: correct the labels, or 'classes' of the suite."
        )
    return [position[label] for label in labels]


def _positions(given: ClassNames | None, carried: Sequence[str] | None, source: str) -> dict[Label, int]:
    names = prompt_names(given, carried, source)
    own: Sequence[str] = carried or names
    if isinstance(given, Mapping):
        written: dict[Label, int] = {key: i for i, key in enumerate(given)}
        by_number: dict[Label, int] = {int(key): i for i, key in enumerate(given) if key.isdigit()}
        return written | by_number | {i: written[name] for i, name in enumerate(carried or ()) if name in written}
    positions: dict[Label, int] = {i: i for i in range(len(names))}
    return positions | {name: i for i, name in enumerate(own)} | {plain(name): i for i, name in enumerate(own)}


def classes_file(folder: Path) -> list[str] | None:
    """The names in a data folder's classes.json; None if there is none.

    Raises:
        DataError: it is no list of distinct names.
    """
    file = folder / CLASSES_FILE
    if not file.is_file():
        return None
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: is no JSON: {error}") from error
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)):
        raise DataError(f"{file}: must be a JSON list of distinct class names.")
    return names
