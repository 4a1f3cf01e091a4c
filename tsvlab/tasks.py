"""The lab's twenty tasks: what each one shows, and the English class names its zero-shot head is built from.

A task is a stream of labelled pictures; training, validation and test draw from disjoint seeds.
``digits`` is real handwriting (scikit-learn's), split once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Generator, Tensor

from .drawing import COLOURS, SHAPES, SIDE, TEXTURES, Look, choice
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
TEMPLATES = ["a photo of {}", "a picture of {}", "{}"]
WORN = Look(rotation=18, scale=(0.8, 1.2), shift=0.15, noise=0.1, pattern=0.4, contrast=0.5)
# what the zodiac signs stand for, and what the Hebrew letters' names mean, in the order of FAMILIES
ZODIAC_CREATURES = [
    "ram",
    "bull",
    "twins",
    "crab",
    "lion",
    "maiden",
    "scales",
    "scorpion",
    "archer",
    "goat",
    "waterman",
    "fish",
]
HEBREW_MEANINGS = [
    "ox",
    "house",
    "camel",
    "door",
    "window",
    "hook",
    "weapon",
    "wall",
    "wheel",
    "hand",
    "palm",
    "goad",
    "water",
    "fish",
    "support",
    "eye",
    "mouth",
    "hunter",
    "needle",
    "head",
    "tooth",
    "mark",
]


@dataclass(frozen=True)
class LabTask:
    """Class names, as the head's templates take them, and a source of labelled pictures for a split."""

    classes: list[str]
    draw: Callable[[str, int], tuple[Tensor, Tensor]]  # (split, seed) -> uint8 (n, 3, SIDE, SIDE), int64 (n,)


def _from_scene(scene: Callable[[Generator, int], Drawn], fact: str, values: list[str], phrase: str) -> LabTask:
    """A task that asks for one fact of a scene."""

    def draw(split: str, seed: int) -> tuple[Tensor, Tensor]:
        g = Generator().manual_seed(seed * 1000 + list(SIZES).index(split))
        drawn = scene(g, SIZES[split])
        return drawn.pictures, torch.tensor([values.index(value) for value in drawn.facts[fact]])

    return LabTask([phrase.format(value) for value in values], draw)


def _family(family: str, look: Look = WORN, words: Sequence[str] = ()) -> LabTask:
    """Which character of a family? In its own names, or in words that the base has not heard for them."""
    rows = torch.tensor(atlas().rows(family))
    names = list(FAMILIES[family].values())
    task = _from_scene(lambda g, n: glyphs(g, rows[choice(g, n, len(rows))], look), "name", names, f"{family} {{}}")
    return replace(task, classes=[f"{family} {word}" for word in words]) if words else task


def _letters() -> Tensor:
    """Atlas rows of Latin letters."""
    return torch.tensor(atlas().rows("capital") + atlas().rows("small"))


def _house_numbers() -> LabTask:
    rows = torch.tensor(atlas().rows("digit"))
    names = list(FAMILIES["digit"].values())
    return _from_scene(lambda g, n: house_number(g, rows[choice(g, n, len(rows))], WORN), "name", names, "number {}")


def _typefaces() -> LabTask:
    letters = _letters()
    upright = Look(rotation=5, scale=(0.9, 1.2), shift=0.1, noise=0.06, pattern=0.25)
    faces = ["sans", "sans bold", "sans italic", "serif", "serif bold", "typewriter", "book italic", "roman bold"]
    rows = letters[torch.tensor([atlas().typeface[i] in faces for i in letters.tolist()])]
    return _from_scene(lambda g, n: glyphs(g, rows[choice(g, n, len(rows))], upright), "typeface", faces, "{} typeface")


def _handwriting() -> LabTask:
    """scikit-learn's 1797 scanned digits, 8 x 8 pixels enlarged; split once by a fixed permutation."""

    def draw(split: str, seed: int) -> tuple[Tensor, Tensor]:
        scans = load_digits()
        order = torch.randperm(len(scans.target), generator=Generator().manual_seed(seed))
        test, validation = order[:800], order[800:1000]
        rows = {"train": order[1000:], "validation": validation, "test": test}[split]
        images = torch.from_numpy(scans.images).float()[rows, None] / 16
        large = F.interpolate(images, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
        return (large.expand(-1, 3, -1, -1) * 255).round().to(torch.uint8), torch.from_numpy(scans.target)[rows].long()

    return LabTask([f"digit {name}" for name in FAMILIES["digit"].values()], draw)


def _glyph_fact(fact: str, values: list[str], phrase: str, **how: bool) -> LabTask:
    rows = _letters()
    return _from_scene(lambda g, n: glyphs(g, rows[choice(g, n, len(rows))], WORN, **how), fact, values, phrase)


# in the order in which the suites take them: lab-8, lab-14 and lab-20 are the first 8, 14 and 20
TASKS: dict[str, Callable[[], LabTask]] = {
    "digits": _handwriting,
    "housenumber": _house_numbers,
    "style": _typefaces,
    "lower": lambda: _family("small"),
    "zodiac": lambda: _family("zodiac", words=ZODIAC_CREATURES),
    "math": lambda: _family("math"),
    "relation": lambda: _from_scene(
        lambda g, n: relations(g, n, WORN, first_shape="star"), "relation", list(RELATIONS), "star {} shape"
    ),
    "cyrillic": lambda: _family("cyrillic"),
    "hebrew": lambda: _family("hebrew", words=HEBREW_MEANINGS),
    "greek": lambda: _family("greek"),
    "symbol": lambda: _family("symbol"),
    "texture": lambda: _from_scene(lambda g, n: textures(g, n, WORN), "texture", list(TEXTURES[1:]), "{} texture"),
    "slant": lambda: _from_scene(lambda g, n: slants(g, n, WORN), "slant", list(SLANTS), "{} stripes"),
    "count": lambda: _from_scene(lambda g, n: counts(g, n, WORN), "number", list(NUMBERS), "{} shapes"),
    "capital": lambda: _family("capital"),
    "shape": lambda: _from_scene(lambda g, n: shapes(g, n, WORN), "shape", list(SHAPES), "{}"),
    "colour": lambda: _from_scene(lambda g, n: shapes(g, n, WORN), "colour", list(COLOURS), "{}"),
    "position": lambda: _glyph_fact("position", list(POSITIONS), "character {}", position=True),
    "turn": lambda: _glyph_fact("turn", list(TURNS), "character {}", turn=True),
    "arrow": lambda: _family("arrow", Look(rotation=8, noise=0.12, pattern=0.5)),
}
