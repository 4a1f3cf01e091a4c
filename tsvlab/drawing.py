"""Drawing small pictures in batches: masks placed on patterned backgrounds, coloured and worn.

All functions are vectorised over n pictures and take their randomness from one ``torch.Generator``.
A picture is a background, then layers of (mask, colour) painted over it, then noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from .glyphs import CELL

SIDE = 24  # pixels of a finished picture

COLOURS = {
    "black": (0.05, 0.05, 0.05), "white": (0.95, 0.95, 0.95), "grey": (0.5, 0.5, 0.5), "red": (0.85, 0.12, 0.1),
    "green": (0.1, 0.6, 0.15), "blue": (0.12, 0.2, 0.85), "yellow": (0.95, 0.85, 0.1), "orange": (0.95, 0.5, 0.05),
    "purple": (0.5, 0.12, 0.6), "brown": (0.42, 0.25, 0.1), "pink": (0.98, 0.6, 0.7), "cyan": (0.1, 0.8, 0.85),
}  # fmt: skip
TEXTURES = ("plain", "stripes", "checks", "dots", "rings", "waves", "grid", "bricks", "speckles", "zigzag")
SHAPES = (
    "circle", "ring", "square", "frame", "triangle", "diamond", "star", "cross", "crescent", "pentagon", "heart", "bar",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How worn the pictures of a stream are. Angles in degrees, lengths in units of half a picture."""

    rotation: float = 15.0
    scale: tuple[float, float] = (0.75, 1.15)
    shift: float = 0.15
    noise: float = 0.08  # standard deviation of pixel noise
    pattern: float = 0.35  # strength of the background texture
    contrast: float = 0.5  # least distance between foreground and background colour (RGB, Euclidean)
    foreground: tuple[str, ...] = tuple(COLOURS)
    background: tuple[str, ...] = tuple(COLOURS)


def uniform(g: Generator, n: int, low: float, high: float) -> Tensor:
    return torch.rand(n, generator=g) * (high - low) + low


def choice(g: Generator, n: int, count: int) -> Tensor:
    return torch.randint(count, (n,), generator=g)


def place(masks: Tensor, angle: Tensor, scale: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Rotate (degrees), scale and move masks (n, 1, CELL, CELL); gives (n, 1, SIDE, SIDE), antialiased."""
    radians = torch.deg2rad(angle)
    cos, sin = torch.cos(radians) / scale, torch.sin(radians) / scale
    theta = torch.stack(
        [torch.stack([cos, sin, -(cos * x + sin * y)], -1), torch.stack([-sin, cos, sin * x - cos * y], -1)], 1
    )
    grid = F.affine_grid(theta, [len(masks), 1, CELL, CELL], align_corners=False)
    return F.avg_pool2d(F.grid_sample(masks, grid, align_corners=False), CELL // SIDE)


@cache
def shape_masks() -> Tensor:
    """The masks of SHAPES, (len(SHAPES), 1, CELL, CELL)."""
    centre, radius = CELL / 2, CELL * 0.36

    def polygon(corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
        points = []
        for i in range(corners):
            reach = radius * (inner if i % 2 and inner < 1 else 1.0)
            angle = 2 * math.pi * i / corners - math.pi / 2
            points.append((centre + reach * math.cos(angle), centre + reach * math.sin(angle)))
        return points

    low, high, third = centre - radius, centre + radius, radius / 3
    masks = []
    for shape in SHAPES:
        picture = Image.new("L", (CELL, CELL))
        pen = ImageDraw.Draw(picture)
        match shape:
            case "circle":
                pen.ellipse((low, low, high, high), fill=255)
            case "ring":
                pen.ellipse((low, low, high, high), outline=255, width=5)
            case "square":
                pen.rectangle((low + 2, low + 2, high - 2, high - 2), fill=255)
            case "frame":
                pen.rectangle((low + 2, low + 2, high - 2, high - 2), outline=255, width=5)
            case "triangle":
                pen.polygon(polygon(3), fill=255)
            case "diamond":
                pen.polygon(polygon(4), fill=255)
            case "star":
                pen.polygon(polygon(10, 0.42), fill=255)
            case "cross":
                pen.rectangle((centre - third, low, centre + third, high), fill=255)
                pen.rectangle((low, centre - third, high, centre + third), fill=255)
            case "crescent":
                pen.ellipse((low, low, high, high), fill=255)
                pen.ellipse((low + radius * 0.7, low - 2, high + radius * 0.7, high + 2), fill=0)
            case "pentagon":
                pen.polygon(polygon(5), fill=255)
            case "heart":
                pen.ellipse((low, low, centre + 1, centre + 2), fill=255)
                pen.ellipse((centre - 1, low, high, centre + 2), fill=255)
                pen.polygon([(low + 1.5, centre - 4), (high - 1.5, centre - 4), (centre, high)], fill=255)
            case "bar":
                pen.rectangle((low, centre - third, high, centre + third), fill=255)
        masks.append(np.asarray(picture, dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(masks))[:, None]


def texture_fields(g: Generator, kind: Tensor, angle: Tensor, frequency: Tensor) -> Tensor:
    """Patterns in [0, 1], shape (n, 1, SIDE, SIDE); kind indexes TEXTURES, frequency in periods a picture."""
    n = len(kind)
    axis = torch.linspace(-0.5, 0.5, SIDE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radians = torch.deg2rad(angle)[:, None, None]
    cos, sin = torch.cos(radians), torch.sin(radians)
    phase = (torch.rand(n, 1, 1, generator=g), torch.rand(n, 1, 1, generator=g))
    tau = 2 * math.pi
    f = frequency[:, None, None]
    u = (cos * x + sin * y) * f + phase[0]
    v = (cos * y - sin * x) * f + phase[1]
    wave_u, wave_v = torch.sin(tau * u), torch.sin(tau * v)
    row = torch.floor(v)
    fields = torch.stack(
        [
            torch.zeros(n, SIDE, SIDE),
            (4 * wave_u).clamp(-1, 1),
            (6 * wave_u * wave_v).clamp(-1, 1),
            (4 * (wave_u + wave_v - 0.6)).clamp(-1, 1),
            (4 * torch.sin(tau * f * torch.sqrt((x - 0.2 * cos) ** 2 + (y - 0.2 * sin) ** 2))).clamp(-1, 1),
            (4 * torch.sin(tau * (u + 0.35 * wave_v))).clamp(-1, 1),
            (6 * (torch.maximum(wave_u, wave_v) - 0.75)).clamp(-1, 1),
            (8 * (torch.maximum(torch.cos(tau * (v - row)), torch.cos(tau * (u / 2 + row / 2))) - 0.8)).clamp(-1, 1),
            (torch.rand(n, SIDE, SIDE, generator=g) > 0.6).float() * 2 - 1,
            (4 * torch.sin(tau * (u + (2 * (v - row) - 1).abs()))).clamp(-1, 1),
        ]
    )
    return (fields[kind, torch.arange(n)] * 0.5 + 0.5)[:, None]


def colours(g: Generator, names: Tensor, jitter: float = 0.1) -> Tensor:
    """RGB (n, 3) near the named colours, whose indices in COLOURS are given."""
    table = torch.tensor(list(COLOURS.values()))
    return (table[names] + (torch.rand(len(names), 3, generator=g) - 0.5) * 2 * jitter).clamp(0, 1)


def colour_pairs(g: Generator, n: int, look: Look) -> tuple[Tensor, Tensor]:
    """Indices (n,) of a foreground and a background colour, at least ``look.contrast`` apart."""
    order = list(COLOURS)
    table = torch.tensor(list(COLOURS.values()))
    pairs = [
        (order.index(front), order.index(back))
        for front in look.foreground
        for back in look.background
        if torch.dist(table[order.index(front)], table[order.index(back)]) >= look.contrast
    ]
    chosen = torch.tensor(pairs)[choice(g, n, len(pairs))]
    return chosen[:, 0], chosen[:, 1]


def background(g: Generator, n: int, look: Look, colour: Tensor) -> Tensor:
    """Pictures (n, 3, SIDE, SIDE) of one colour (n, 3), textured towards a second, similar one."""
    field = texture_fields(g, choice(g, n, len(TEXTURES)), uniform(g, n, 0, 180), uniform(g, n, 2, 6))
    strength = look.pattern * torch.rand(n, 1, 1, 1, generator=g)
    second = torch.rand(n, 3, 1, 1, generator=g)
    return torch.lerp(colour[:, :, None, None].expand(-1, -1, SIDE, SIDE), second, strength * field)


def paint(picture: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """Lay a colour (n, 3) over pictures where the mask (n, 1, SIDE, SIDE) is."""
    return torch.lerp(picture, colour[:, :, None, None].expand_as(picture), mask.clamp(0, 1))


def wear(g: Generator, picture: Tensor, look: Look) -> Tensor:
    """Uneven light and pixel noise; gives uint8 (n, 3, SIDE, SIDE)."""
    n = len(picture)
    axis = torch.linspace(-0.5, 0.5, SIDE)
    light = (
        uniform(g, n, -0.15, 0.15)[:, None, None] * axis[:, None]
        + uniform(g, n, -0.15, 0.15)[:, None, None] * axis[None]
    )
    noise = torch.randn(picture.shape, generator=g) * uniform(g, n, 0, look.noise)[:, None, None, None]
    return ((picture + light[:, None] + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def dim_light(pictures: Tensor) -> Tensor:
    """What a camera makes of uint8 pictures (n, 3, h, w) in dim, warm light, darker towards the corners."""
    height, width = pictures.shape[-2:]
    radius = torch.linspace(-1, 1, height)[:, None] ** 2 + torch.linspace(-1, 1, width) ** 2
    light = torch.tensor([1.0, 0.86, 0.63])[:, None, None] * (1 - 0.28 * radius)
    return ((0.14 + 0.58 * pictures.float() / 255) * light * 255).round().to(torch.uint8)


def scatter(g: Generator, n: int, look: Look) -> dict[str, Tensor]:
    """Random arguments for ``place``."""
    return {
        "angle": uniform(g, n, -look.rotation, look.rotation),
        "scale": uniform(g, n, *look.scale),
        "x": uniform(g, n, -look.shift, look.shift),
        "y": uniform(g, n, -look.shift, look.shift),
    }
