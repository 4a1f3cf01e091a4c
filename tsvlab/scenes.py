"""What the lab can depict. A scene function draws n pictures and tells, for each, the facts a caption may state.

The pre-training mixture and every task draw from these scenes; a task fixes a look and asks for one fact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_sample_images
from torch import Generator, Tensor

from .drawing import (
    COLOURS,
    SHAPES,
    SIDE,
    TEXTURES,
    Look,
    background,
    choice,
    colour_pairs,
    colours,
    paint,
    place,
    scatter,
    shape_masks,
    texture_fields,
    uniform,
    wear,
)
from .glyphs import atlas

POSITIONS = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
TURNS = ("upright", "turned left", "upside down", "turned right")
RELATIONS = ("left of", "right of", "above", "below", "inside", "around")
SLANTS = ("horizontal", "rising", "vertical", "falling")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


@dataclass(frozen=True)
class Drawn:
    """Pictures uint8 (n, 3, SIDE, SIDE) and, for each fact, one value a picture."""

    pictures: Tensor
    facts: dict[str, list[str]]


def _names(order: tuple[str, ...] | list[str], index: Tensor) -> list[str]:
    return [order[i] for i in index.tolist()]


def _on_background(g: Generator, n: int, look: Look) -> tuple[Tensor, Tensor, dict[str, list[str]]]:
    """A background (n, 3, SIDE, SIDE), a foreground colour (n, 3), and the facts about both."""
    front, back = colour_pairs(g, n, look)
    order = list(COLOURS)
    facts = {"colour": _names(order, front), "ground": _names(order, back)}
    return background(g, n, look, colours(g, back)), colours(g, front), facts


def _to_a_ninth(g: Generator, where: dict[str, Tensor]) -> list[str]:
    """Shrink what is placed and move it to one of nine positions; gives their names."""
    ninth = choice(g, len(where["x"]), 9)
    where["scale"] = where["scale"] * 0.42
    where["x"] = where["x"] * 0.4 + (ninth % 3 - 1) * 0.62
    where["y"] = where["y"] * 0.4 + (ninth // 3 - 1) * 0.62
    return _names(POSITIONS, ninth)


def glyphs(g: Generator, rows: Tensor, look: Look, turn: bool = False, position: bool = False) -> Drawn:
    """One character a picture; rows index the atlas. May be turned by quarter turns or moved to a ninth."""
    n = len(rows)
    picture, colour, facts = _on_background(g, n, look)
    where = scatter(g, n, look)
    if turn:
        quarter = choice(g, n, 4)
        where["angle"] = where["angle"] + 90.0 * quarter
        facts["turn"] = _names(TURNS, quarter)
    if position:
        facts["position"] = _to_a_ninth(g, where)
    letters = atlas()
    facts |= {
        "family": _names(letters.family, rows),
        "name": _names(letters.name, rows),
        "typeface": _names(letters.typeface, rows),
    }
    picture = paint(picture, place(letters.masks[rows], **where), colour)
    return Drawn(wear(g, picture, look), facts)


def house_number(g: Generator, rows: Tensor, look: Look) -> Drawn:
    """A digit between two others that are partly cut off; the middle one counts."""
    n = len(rows)
    letters = atlas()
    digits = torch.tensor(letters.rows("digit"))
    picture, colour, facts = _on_background(g, n, look)
    where = scatter(g, n, look)
    where["scale"] = where["scale"] * 0.85
    gap = uniform(g, n, 0.75, 0.95) * where["scale"] / 0.85
    for side in (-1, 1):
        neighbour = digits[choice(g, n, len(digits))]
        beside = where | {"x": where["x"] + side * gap}
        present = (torch.rand(n, generator=g) < 0.75).float()[:, None, None, None]
        picture = paint(picture, present * place(letters.masks[neighbour], **beside), colour)
    picture = paint(picture, place(letters.masks[rows], **where), colour)
    facts["name"] = _names(letters.name, rows)
    return Drawn(wear(g, picture, look), facts)


def shapes(g: Generator, n: int, look: Look, position: bool = False) -> Drawn:
    """One geometric shape a picture."""
    picture, colour, facts = _on_background(g, n, look)
    kind = choice(g, n, len(SHAPES))
    where = scatter(g, n, look)
    if position:
        facts["position"] = _to_a_ninth(g, where)
    facts["shape"] = _names(SHAPES, kind)
    picture = paint(picture, place(shape_masks()[kind], **where), colour)
    return Drawn(wear(g, picture, look), facts)


def textures(g: Generator, n: int, look: Look) -> Drawn:
    """A pattern of two colours that fills the picture."""
    front, back = colour_pairs(g, n, look)
    kind = choice(g, n, len(TEXTURES) - 1) + 1
    field = texture_fields(g, kind, uniform(g, n, 0, 180), uniform(g, n, 2, 5))
    picture = colours(g, back)[:, :, None, None].expand(-1, -1, SIDE, SIDE)
    facts = {"texture": _names(TEXTURES, kind), "colour": _names(list(COLOURS), front)}
    return Drawn(wear(g, paint(picture, field, colours(g, front)), look), facts)


def slants(g: Generator, n: int, look: Look) -> Drawn:
    """Stripes in one of four directions."""
    front, back = colour_pairs(g, n, look)
    direction = choice(g, n, len(SLANTS))
    angle = 90.0 - 45.0 * direction + uniform(g, n, -look.rotation, look.rotation)
    field = texture_fields(g, torch.ones(n, dtype=torch.long), angle, uniform(g, n, 2, 6))
    picture = colours(g, back)[:, :, None, None].expand(-1, -1, SIDE, SIDE)
    facts = {"slant": _names(SLANTS, direction), "colour": _names(list(COLOURS), front)}
    return Drawn(wear(g, paint(picture, field, colours(g, front)), look), facts)


def counts(g: Generator, n: int, look: Look) -> Drawn:
    """One to eight small shapes of one kind, in the cells of a jittered 3 x 3 grid."""
    picture, colour, facts = _on_background(g, n, look)
    number, kind = choice(g, n, len(NUMBERS)), choice(g, n, len(SHAPES))
    cells = torch.rand(n, 9, generator=g).argsort(1)
    for i in range(len(NUMBERS)):
        here = {
            "angle": uniform(g, n, -look.rotation, look.rotation),
            "scale": uniform(g, n, 0.3, 0.38),
            "x": (cells[:, i] % 3 - 1) * 0.62 + uniform(g, n, -0.06, 0.06),
            "y": (cells[:, i] // 3 - 1) * 0.62 + uniform(g, n, -0.06, 0.06),
        }
        present = (number >= i).float()[:, None, None, None]
        picture = paint(picture, present * place(shape_masks()[kind], **here), colour)
    facts |= {"number": _names(NUMBERS, number), "shape": _names(SHAPES, kind)}
    return Drawn(wear(g, picture, look), facts)


def relations(g: Generator, n: int, look: Look, first_shape: str | None = None) -> Drawn:
    """Two shapes, the first in a stated relation to the second; 'inside' and 'around' differ in size.

    With ``first_shape`` the first is always of that kind and the second never, so that the relation can be seen.
    """
    picture, colour, facts = _on_background(g, n, look)
    relation = choice(g, n, len(RELATIONS))
    first, second = choice(g, n, len(SHAPES)), choice(g, n, len(SHAPES))
    if first_shape:
        kind = SHAPES.index(first_shape)
        first, second = torch.full_like(first, kind), (kind + 1 + choice(g, n, len(SHAPES) - 1)) % len(SHAPES)
    nested = relation >= 4
    dx = torch.tensor([-0.5, 0.5, 0, 0, 0, 0])[relation]
    dy = torch.tensor([0, 0, -0.5, 0.5, 0, 0])[relation]
    small = uniform(g, n, 0.45, 0.6)
    size = {
        0: torch.where(relation == 5, 1.25, torch.where(nested, 0.5, small)),
        1: torch.where(relation == 4, 1.25, torch.where(nested, 0.5, small)),
    }
    x, y = uniform(g, n, -0.12, 0.12), uniform(g, n, -0.12, 0.12)
    order = list(COLOURS)
    other = (torch.tensor([order.index(name) for name in facts["colour"]]) + 1 + choice(g, n, 11)) % 12
    paints = {0: colour, 1: colours(g, other)}
    masks = {
        i: place(
            shape_masks()[kind],
            uniform(g, n, -look.rotation, look.rotation),
            size[i],
            x + sign * dx + uniform(g, n, -0.08, 0.08),
            y + sign * dy + uniform(g, n, -0.08, 0.08),
        )
        for i, kind, sign in ((0, first, 1), (1, second, -1))
    }
    first_on_top = (relation != 5).float()[:, None, None, None]
    below = paint(picture, masks[0] * (1 - first_on_top), paints[0])
    picture = paint(paint(below, masks[1], paints[1]), masks[0] * first_on_top, paints[0])
    facts |= {"relation": _names(RELATIONS, relation), "shape": _names(SHAPES, first), "other": _names(SHAPES, second)}
    return Drawn(wear(g, picture, look), facts)


@cache
def _photographs() -> list[tuple[str, Tensor]]:
    """The two photographs that scikit-learn bundles, as float (3, height, width)."""
    loaded = load_sample_images()
    titles = ["temple", "flower"]
    return [
        (title, torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255)
        for title, image in zip(titles, loaded.images, strict=True)
    ]


def photographs(g: Generator, n: int, look: Look) -> Drawn:
    """Crops of real photographs, at random scales."""
    crops, titles = [], []
    for _ in range(n):
        title, photo = _photographs()[int(torch.randint(2, (), generator=g))]
        side = int(torch.randint(SIDE, 300, (), generator=g))
        top = int(torch.randint(photo.shape[1] - side, (), generator=g))
        left = int(torch.randint(photo.shape[2] - side, (), generator=g))
        crop = photo[None, :, top : top + side, left : left + side]
        crops.append(torch.nn.functional.interpolate(crop, (SIDE, SIDE), mode="bilinear", antialias=True)[0])
        titles.append(title)
    return Drawn(wear(g, torch.stack(crops), look), {"photograph": titles})
