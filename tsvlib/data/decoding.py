"""From encoded bytes to an RGB image, whatever they hold; what cannot be decoded is named, never a crash.

| what | becomes |
|---|---|
| grey, palette, CMYK, 1-bit, with alpha | RGB, as Pillow converts it (alpha is dropped) |
| 16-bit grey | its upper eight bits; Pillow alone would turn all but the darkest white |
| animated | its first frame |
| EXIF orientation | turned upright, as the ``datasets`` library does |
| truncated, no image, no bytes, over 89 million pixels, longer than 100 times its width | :class:`UnreadableImage` |
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

MOST_PIXELS = 89_478_485
"""Pillow's own threshold against decompression bombs: 256 MiB as RGB."""
LONGEST = 100
"""Longer side over shorter side; resizing the shorter one would blow up the longer one."""
_SIXTEEN_BITS = 2**16 - 1


class UnreadableImage(ValueError):
    """An image that cannot be decoded; the message says why."""


def decode_image(encoded: bytes) -> Image.Image:
    """The RGB image that these bytes hold.

    Raises:
        UnreadableImage: they hold none that can be decoded.
    """
    if not encoded:
        raise UnreadableImage("no bytes")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            _check_size(image)
            image.load()
            return _as_rgb(_upright(image))
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"more than {MOST_PIXELS:,} pixels; scale it down") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage("no image that is known") from error
    except Exception as error:  # every decoder of Pillow's has exceptions of its own
        raise UnreadableImage(str(error) or type(error).__name__) from error


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UnreadableImage(f"{width:,} × {height:,} pixels are more than {MOST_PIXELS:,}; scale it down")
    if max(width, height) > LONGEST * min(width, height):
        raise UnreadableImage(f"{width:,} × {height:,} pixels: too long and narrow")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged notes on how the camera was held: the picture itself is whole
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image.convert("I"))
        if values.min() < 0 or values.max() > _SIXTEEN_BITS:
            raise UnreadableImage("more than 16 bits a pixel; convert it to 8 or 16")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
