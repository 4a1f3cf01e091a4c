"""Pictures as the world has them: what each becomes, and what is left out by name."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import to_tensor

from tsvlib.data.decoding import UnreadableImage, decode_image
from tsvlib.errors import DataError
from tsvlib.images import load_images, write_images

RAMP = np.linspace(0, 255, 12).astype(np.uint8).reshape(3, 4)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animated() -> bytes:
    frames = [Image.new("P", (4, 3), color) for color in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    return saved(Image.fromarray(RAMP), "PNG", exif=exif)


def transparent_palette() -> bytes:
    image = Image.fromarray(RAMP).convert("P")
    return saved(image, "PNG", transparency=bytes([0, 128, 255]))


HANDLED: dict[str, tuple[Callable[[], bytes], Callable[[], np.ndarray]]] = {
    "grey": (lambda: saved(Image.fromarray(RAMP)), lambda: np.stack([RAMP] * 3, -1)),
    "16-bit grey": (
        lambda: saved(Image.fromarray(RAMP.astype(np.uint16) * 257)),
        lambda: np.stack([RAMP] * 3, -1),
    ),
    "grey with alpha": (
        lambda: saved(Image.merge("LA", [Image.fromarray(RAMP)] * 2)),
        lambda: np.stack([RAMP] * 3, -1),
    ),
    "palette": (lambda: saved(Image.new("P", (4, 3), 0)), lambda: np.zeros((3, 4, 3))),
    "palette with alpha": (transparent_palette, lambda: np.stack([RAMP] * 3, -1)),
    "two colours": (lambda: saved(Image.new("1", (4, 3), 1)), lambda: np.full((3, 4, 3), 255)),
    "CMYK": (
        lambda: saved(Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "TIFF"),
        lambda: np.broadcast_to([255, 0, 0], (3, 4, 3)),
    ),
    "animated": (animated, lambda: np.broadcast_to([255, 0, 0], (3, 4, 3))),
    "on its side": (turned, lambda: np.stack([np.rot90(RAMP, -1)] * 3, -1)),
}


@pytest.mark.parametrize("kind", HANDLED)
def test_pictures_become_rgb(kind: str) -> None:
    make, expected = HANDLED[kind]
    image = decode_image(make())
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), expected())


def test_cmyk_photographs() -> None:
    image = decode_image(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - [255, 0, 0]).max() < 8


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = saved(Image.effect_noise((64, 64), 90), "JPEG")
UNREADABLE = {
    "zero bytes": (b"", "no bytes"),
    "a web page": (b"<html>404</html>", "no image that is known"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "truncated"),
    "bomb": (claims(60_000, 60_000), "more than 89,478,485 pixels; scale it down"),
    "smaller bomb": (claims(10_000, 10_000), "10,000 × 10,000 pixels are more than 89,478,485; scale it down"),
    "a line": (saved(Image.new("L", (1000, 1))), "1,000 × 1 pixels: too long and narrow"),
    "floating point": (
        saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
        "floating-point pixels, whose range is unknown; convert it to 8 or 16 bits",
    ),
    "32 bits": (
        saved(Image.fromarray(RAMP.astype(np.int32) * 100_000), "TIFF"),
        "more than 16 bits a pixel; convert it to 8 or 16",
    ),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_decoded_says_why(kind: str) -> None:
    encoded, message = UNREADABLE[kind]
    with pytest.raises(UnreadableImage, match=message):
        decode_image(encoded)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_never_gets_out(data: st.DataObject) -> None:
    """Any bytes overwritten in any format: an image, or an UnreadableImage."""
    whole = data.draw(st.sampled_from([WHOLE, turned(), animated(), HANDLED["CMYK"][0]()]))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnreadableImage):
        assert decode_image(bytes(damaged)).mode == "RGB"


def a_split(folder: Path, bad: dict[int, bytes], images: int = 200) -> Path:
    good = [saved(Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(images)]
    write_images(folder, "test", [bad.get(i, image) for i, image in enumerate(good)], [i % 2 for i in range(images)])
    (folder / "classes.json").write_text('["even", "odd"]')
    return folder


def test_a_bad_image_is_left_out_named_and_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = load_images(a_split(tmp_path, {5: b"", 133: WHOLE[:99]}), "test")
    batches = list(images.batches(64, to_tensor))
    rows = torch.cat([batch.rows for batch in batches])
    assert set(range(200)) - set(rows.tolist()) == {5, 133} == set(images.unreadable)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), rows % 2)
    assert torch.equal((torch.cat([batch.images for batch in batches])[:, 0, 0, 0] * 255).round().long(), rows)
    assert "test.parquet, row 5 is left out, it cannot be decoded: no bytes" in caplog.text
    assert len(list(images.batches(1, to_tensor))) == 198
    assert caplog.text.count("row 5 is left out") == 1


def test_too_many_bad_images_are_an_error(tmp_path: Path) -> None:
    images = load_images(a_split(tmp_path, {5: b"", 133: b"no", 134: b"no"}), "test")
    with pytest.raises(DataError, match=r"3 of 200 images cannot be decoded, more than 1%; the first is test\.parquet"):
        list(images.batches(64, to_tensor))


def test_data_that_is_wrong_altogether_is_told_before_any_work(tmp_path: Path) -> None:
    images = load_images(a_split(tmp_path, dict.fromkeys(range(200), b"GIF89a")), "test")
    with pytest.raises(DataError, match=r"16 of 16 images tried cannot be decoded, such as test\.parquet, row 0: "):
        images.probe()
    load_images(a_split(tmp_path / "good", {}), "test").probe()
