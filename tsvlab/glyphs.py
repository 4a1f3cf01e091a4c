"""The lab's alphabet: every character it can draw, rendered once per typeface into small masks.

The typefaces are those bundled with matplotlib, so the lab draws the same glyphs on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 48  # side of a mask in pixels; drawn images sample from it
GLYPH_HEIGHT = 34  # longest side of the ink inside the cell

TYPEFACES = {
    "sans": "DejaVuSans.ttf",
    "sans bold": "DejaVuSans-Bold.ttf",
    "sans italic": "DejaVuSans-Oblique.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif bold": "DejaVuSerif-Bold.ttf",
    "serif italic": "DejaVuSerif-Italic.ttf",
    "typewriter": "DejaVuSansMono.ttf",
    "typewriter bold": "DejaVuSansMono-Bold.ttf",
    "typewriter italic": "DejaVuSansMono-Oblique.ttf",
    "book": "STIXGeneral.ttf",
    "book bold": "STIXGeneralBol.ttf",
    "book italic": "STIXGeneralItalic.ttf",
    "roman": "cmr10.ttf",
    "roman bold": "cmb10.ttf",
    "roman sans": "cmss10.ttf",
    "teletype": "cmtt10.ttf",
}

_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_GREEK = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "chi",
    "psi",
    "omega",
]
_CYRILLIC = dict(
    zip(
        "бвгджзийклнптфцчшщъыьэюя",
        [
            "be",
            "ve",
            "ghe",
            "de",
            "zhe",
            "ze",
            "i",
            "shorti",
            "ka",
            "el",
            "en",
            "pe",
            "te",
            "ef",
            "tse",
            "che",
            "sha",
            "shcha",
            "hard",
            "yery",
            "soft",
            "reversede",
            "yu",
            "ya",
        ],
        strict=True,
    )
)
_HEBREW = dict(
    zip(
        "אבגדהוזחטיכלמנסעפצקרשת",
        [
            "alef",
            "bet",
            "gimel",
            "dalet",
            "he",
            "vav",
            "zayin",
            "het",
            "tet",
            "yod",
            "kaf",
            "lamed",
            "mem",
            "nun",
            "samekh",
            "ayin",
            "pe",
            "tsadi",
            "qof",
            "resh",
            "shin",
            "tav",
        ],
        strict=True,
    )
)
_ZODIAC = [
    "aries",
    "taurus",
    "gemini",
    "cancer",
    "leo",
    "virgo",
    "libra",
    "scorpio",
    "sagittarius",
    "capricorn",
    "aquarius",
    "pisces",
]
_MATH = {
    "+": "plus", "−": "minus", "×": "times", "÷": "divide", "=": "equals", "≠": "unequal",
    "<": "less", ">": "greater", "≈": "approximate", "∞": "infinity", "∫": "integral", "∑": "sum",
    "∏": "product", "√": "root", "∂": "partial", "∇": "nabla", "∈": "element", "⊂": "subset",
    "∪": "union", "∩": "intersection", "∀": "forall", "∃": "exists",
}  # fmt: skip
_SYMBOLS = {
    "♠": "spade", "♥": "heart", "♦": "diamond", "♣": "club", "♪": "note", "♫": "music", "☀": "sun",
    "☁": "cloud", "☂": "umbrella", "☎": "phone", "✂": "scissors", "✈": "plane", "✉": "letter",
    "☺": "smile", "☹": "frown", "☠": "skull", "☢": "radiation", "☮": "peace", "⚓": "anchor", "⚡": "lightning",
}  # fmt: skip
_CHESS = {"♔": "king", "♕": "queen", "♖": "rook", "♗": "bishop", "♘": "knight", "♙": "pawn"}
_ARROWS = {
    "↑": "up", "↗": "upright", "→": "right", "↘": "downright", "↓": "down", "↙": "downleft", "←": "left", "↖": "upleft",
}  # fmt: skip

# family -> {character: the name captions give it}
FAMILIES: dict[str, dict[str, str]] = {
    "digit": {str(i): name for i, name in enumerate(_DIGITS)},
    "capital": {chr(65 + i): chr(97 + i) for i in range(26)},
    "small": {chr(97 + i): chr(97 + i) for i in range(26)},
    "greek": dict(zip("αβγδεζηθικλμνξοπρστυφχψω", _GREEK, strict=True)),
    "cyrillic": _CYRILLIC,
    "hebrew": _HEBREW,
    "zodiac": {chr(0x2648 + i): name for i, name in enumerate(_ZODIAC)},
    "math": _MATH,
    "symbol": _SYMBOLS,
    "chess": _CHESS,
    "arrow": _ARROWS,
}


@dataclass(frozen=True)
class Atlas:
    """All masks, float in [0, 1], shape (glyphs, 1, CELL, CELL), with what each one shows."""

    masks: Tensor
    family: list[str]
    name: list[str]
    typeface: list[str]

    def rows(self, family: str, name: str | None = None, typefaces: set[str] | None = None) -> list[int]:
        """Indices of the glyphs of a family, optionally of one name or drawn in some typefaces."""
        return [
            i
            for i in range(len(self.family))
            if self.family[i] == family
            and (name is None or self.name[i] == name)
            and (typefaces is None or self.typeface[i] in typefaces)
        ]


def _mask(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """One character, scaled so that its longer side fills the cell's glyph box, centred."""
    left, top, right, bottom = font.getbbox(character)
    ink = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(ink).text((2 - left, 2 - top), character, fill=255, font=font)
    scale = GLYPH_HEIGHT / max(ink.size)
    ink = ink.resize((max(3, round(ink.width * scale)), max(3, round(ink.height * scale))), Image.Resampling.LANCZOS)
    cell = Image.new("L", (CELL, CELL))
    cell.paste(ink, ((CELL - ink.width) // 2, (CELL - ink.height) // 2))
    return np.asarray(cell, dtype=np.float32) / 255


@cache
def atlas() -> Atlas:
    """Render every character of every family in each typeface that has it (about a second, once a process)."""
    directory = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    masks, family, name, typeface = [], [], [], []
    for face, file in TYPEFACES.items():
        with TTFont(directory / file) as font:
            covered = set(font.getBestCmap())
        drawn = ImageFont.truetype(str(directory / file), 64)
        for kind, characters in FAMILIES.items():
            for character, title in characters.items():
                if ord(character) in covered:
                    masks.append(_mask(drawn, character))
                    family.append(kind)
                    name.append(title)
                    typeface.append(face)
    return Atlas(torch.from_numpy(np.stack(masks))[:, None], family, name, typeface)
