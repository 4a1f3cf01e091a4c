"""The lab's twenty tasks: what each one shows, and the English class names its zero-shot head is built from.

A task is a stream of labelled pictures; training, validation and test draw from disjoint seeds.
``digits`` is real handwriting (scikit-learn's), split once. As data sets of real benchmarks do, each task has colours
of its own, and all come from a camera that the base has not seen through (``dim_light``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor

from .drawing import COLOURS, SHAPES, SIDE, TEXTURES, Look, choice, dim_light
from .glyphs import FAMILIES, atlas
from .scenes import (
    NUMBERS,
    POSITIONS,
    RELATIONS,
    SLANTS,
    TURNS,
    Drawn,
    counts,
    glyphs,
    house_number,
    relations,
    shapes,
    slants,
    textures,
)

SIZES = {"train": 4000, "validation": 400, "test": 800}
HANDWRITING_SPLIT = 2412  # seed of the only split of the only real pictures
TEMPLATES = ["a photo of {}", "a picture of {}", "{}"]
# words that the base has not heard for what they name here, in the order of FAMILIES and of scenes
ZODIAC_CREATURES = (
    "ram", "bull", "twins", "crab", "lion", "maiden", "scales", "scorpion", "archer", "goat", "waterman", "fish",
)  # fmt: skip
COMPASS = (
    "northwest", "north", "northeast", "west", "centre", "east", "southwest", "south", "southeast",
)  # fmt: skip
COMPASS_CLOCKWISE = (
    "north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest",
)  # fmt: skip
TURNS_AS_HOURS = ("noon", "nine", "six", "three")  # where the top points
SLANTS_AS_POSTURES = ("lying", "climbing", "standing", "dropping")
TYPEFACES = ("sans", "sans bold", "serif", "book italic", "roman bold", "teletype")
TURNABLE = frozenset("abefgjklqrty")  # names of capitals that look like no other, nor like themselves, when turned


@dataclass(frozen=True)
class LabTask:
    """Class names, as the head's templates take them, and a source of labelled pictures for a split."""

    classes: list[str]
    draw: Callable[[str, int], tuple[Tensor, Tensor]]  # (split, seed) -> uint8 (n, 3, SIDE, SIDE), int64 (n,)


def _look(foreground: str = "", background: str = "", **how: Any) -> Look:
    """A look more worn than the pre-training's, in colours named with blanks between; all colours where none are."""
    worn = Look(rotation=18, scale=(0.8, 1.2), shift=0.15, noise=0.1, pattern=0.4)
    worn = replace(
        worn,
        foreground=tuple(foreground.split()) or worn.foreground,
        background=tuple(background.split()) or worn.background,
    )
    return replace(worn, **how)


def _from_scene(
    scene: Callable[[Generator, int], Drawn], fact: str, values: Sequence[str], phrase: str, words: Sequence[str] = ()
) -> LabTask:
    """A task that asks for one fact of a scene; its values may be called by other words in the phrase."""
    order = list(values)

    def draw(split: str, seed: int) -> tuple[Tensor, Tensor]:
        g = Generator().manual_seed(seed * 1000 + list(SIZES).index(split))
        drawn = scene(g, SIZES[split])
        return dim_light(drawn.pictures), torch.tensor([order.index(value) for value in drawn.facts[fact]])

    return LabTask([phrase.format(word) for word in words or order], draw)


def _characters(
    rows: list[int],
    look: Look,
    fact: str,
    values: Sequence[str],
    phrase: str,
    words: Sequence[str] = (),
    **how: bool,
) -> LabTask:
    """A task that asks for one fact of a character of the atlas."""
    drawable = torch.tensor(rows)

    def scene(g: Generator, n: int) -> Drawn:
        return glyphs(g, drawable[choice(g, n, len(drawable))], look, **how)

    return _from_scene(scene, fact, values, phrase, words)


def _family(family: str, look: Look, words: Sequence[str] = ()) -> LabTask:
    """Which character of a family? In its own names, or in words that the base has not heard for them."""
    names = list(FAMILIES[family].values())
    return _characters(atlas().rows(family), look, "name", names, f"{family} {{}}", words)


def _letters() -> list[int]:
    """Atlas rows of Latin letters."""
    return atlas().rows("capital") + atlas().rows("small")


def _house_numbers(look: Look) -> LabTask:
    rows = torch.tensor(atlas().rows("digit"))
    names = list(FAMILIES["digit"].values())
    return _from_scene(lambda g, n: house_number(g, rows[choice(g, n, len(rows))], look), "name", names, "number {}")


def _typefaces(look: Look) -> LabTask:
    rows = [row for row in _letters() if atlas().typeface[row] in TYPEFACES]
    return _characters(rows, look, "typeface", TYPEFACES, "{} typeface")


def _turns(look: Look) -> LabTask:
    rows = [row for row in atlas().rows("capital") if atlas().name[row] in TURNABLE]
    return _characters(rows, look, "turn", TURNS, "character {}", TURNS_AS_HOURS, turn=True)


def _handwriting() -> LabTask:
    """scikit-learn's 1797 scanned digits, 8 x 8 pixels enlarged. The split is the same for every seed."""

    def draw(split: str, seed: int) -> tuple[Tensor, Tensor]:
        scans = load_digits()
        order = torch.randperm(len(scans.target), generator=Generator().manual_seed(HANDWRITING_SPLIT))
        test, validation = order[:800], order[800:1000]
        rows = {"train": order[1000:], "validation": validation, "test": test}[split]
        images = torch.from_numpy(scans.images).float()[rows, None] / 16
        large = F.interpolate(images, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
        pictures = (large.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8)
        return dim_light(pictures), torch.from_numpy(scans.target)[rows].long()

    return LabTask([f"digit {name}" for name in FAMILIES["digit"].values()], draw)


# in the order in which the suites take them: lab-8, lab-14 and lab-20 are the first 8, 14 and 20
TASKS: dict[str, Callable[[], LabTask]] = {
    "digits": _handwriting,
    "texture": lambda: _from_scene(
        lambda g, n: textures(g, n, _look("brown black green purple", "white cyan yellow")),
        "texture", TEXTURES[1:], "{} texture",
    ),
    "zodiac": lambda: _family("zodiac", _look("yellow orange cyan", "black blue", pattern=0.2), ZODIAC_CREATURES),
    "relation": lambda: _from_scene(
        lambda g, n: relations(g, n, _look("", "white yellow"), first_shape="star"),
        "relation", RELATIONS, "star {} shape",
    ),
    "colour": lambda: _from_scene(
        lambda g, n: shapes(g, n, _look("", "white black")), "colour", list(COLOURS), "{}"
    ),
    "count": lambda: _from_scene(
        lambda g, n: counts(g, n, _look("red yellow white black", "green grey")), "number", NUMBERS, "{} shapes"
    ),
    "symbol": lambda: _family("symbol", _look("black blue purple green", "pink", pattern=0.3)),
    "position": lambda: _characters(
        _letters(), _look("red yellow orange", "blue grey"),
        "position", POSITIONS, "character {}", COMPASS, position=True,
    ),
    "housenumber": lambda: _house_numbers(_look("white grey cyan pink", "brown black", pattern=0.6)),
    "hebrew": lambda: _family("hebrew", _look("black brown blue", "yellow orange", pattern=0.2)),
    "style": lambda: _typefaces(
        _look("black brown blue", "white", pattern=0.1, rotation=5, scale=(0.9, 1.2), shift=0.1, noise=0.06)
    ),
    "lower": lambda: _family("small", _look("white yellow pink", "green", pattern=0.3)),
    "arrow": lambda: _family(
        "arrow", _look("white yellow cyan", "red", rotation=8, scale=(0.75, 1.15), noise=0.12, pattern=0.5),
        COMPASS_CLOCKWISE,
    ),
    "cyrillic": lambda: _family("cyrillic", _look("white black yellow", "red purple", pattern=0.3)),
    "math": lambda: _family("math", _look("black blue purple", "grey cyan", pattern=0.5)),
    "greek": lambda: _family("greek", _look("white yellow pink", "blue", pattern=0.3)),
    "capital": lambda: _family("capital", _look("red purple blue", "white grey", pattern=0.5)),
    "shape": lambda: _from_scene(
        lambda g, n: shapes(g, n, _look("", "black", pattern=0.6)), "shape", SHAPES, "{}"
    ),
    "slant": lambda: _from_scene(
        lambda g, n: slants(g, n, _look("white orange yellow", "purple blue")),
        "slant", SLANTS, "{} stripes", SLANTS_AS_POSTURES,
    ),
    "turn": lambda: _turns(_look("green blue red", "yellow pink")),
}  # fmt: skip
