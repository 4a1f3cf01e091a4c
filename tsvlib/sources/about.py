"""What lies beside the weights and tells how they are meant: activation, preprocessing and tokenizer."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CheckpointError
from .location import Location

About = dict[str, Any]

_LONGEST_FILE = 4 * 2**20  # bytes; a configuration has a few thousand, a vocabulary half a million
_MERGES = 49152 - 256 - 2  # rules of a vocabulary that CLIP's tokenizer reads; what follows them is not used
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def about_model(location: Location) -> About:
    """What the source or files beside the weights tell, under one set of names.

    ``activation``, ``image_size``, ``mean``, ``std``, ``interpolation``, ``resize_mode``; ``vocabulary_size``,
    ``context_length``, ``tokenizer`` (a name on the hub) and ``vocabulary`` (a digest of its rules).

    ``open_clip_config.json`` and ``merges.txt.gz`` (open_clip), ``config.json``, ``preprocessor_config.json`` and
    ``merges.txt`` (Hugging Face) are read.
    """
    found: About = {}
    for name, read in _READERS.items():
        if name in location.names:
            found |= as_about(_read(location, name, read))
    return found | as_about(location.about)


def about_open_clip(config: Mapping[str, Any]) -> About:
    """The same of a model whose configuration is at hand, as ``open_clip_config.json`` has it."""
    model, images = _part(config, "model_cfg"), _part(config, "preprocess_cfg")
    text = _part(model, "text_cfg")
    own_tokenizer = text.get("hf_tokenizer_name")
    found = {
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu" if model else None,
        "image_size": _part(model, "vision_cfg").get("image_size"),
        "mean": _numbers(images.get("mean")),
        "std": _numbers(images.get("std")),
        "interpolation": images.get("interpolation"),
        "resize_mode": images.get("resize_mode"),
        "vocabulary_size": text.get("vocab_size", None if own_tokenizer else 49408) if text else None,
        "context_length": text.get("context_length", 77) if text else None,
        "tokenizer": own_tokenizer,
    }
    return as_about(found)


def as_about(found: Mapping[str, Any]) -> About:
    """Without what is unknown; lists as tuples, so that what was read from JSON compares with what was not."""
    return {
        field: tuple(value) if isinstance(value, list) else value for field, value in found.items() if value is not None
    }


def _read(location: Location, name: str, read: Callable[[bytes], About]) -> About:
    try:
        with location.file(name).opened() as file:
            return read(file.read(_LONGEST_FILE))
    except (ValueError, TypeError, RecursionError, OSError, EOFError, zlib.error, CheckpointError):
        return {}  # a note beside the weights, not the weights: no reason to stop


def _hugging_face_model(content: bytes) -> About:
    config = _parse(content)
    vision, text = _part(config, "vision_config") or config, _part(config, "text_config")
    activation = vision.get("hidden_act")
    return {
        "activation": "quick_gelu" if activation == "quick_gelu" else activation and "gelu",
        "image_size": vision.get("image_size"),
        "vocabulary_size": text.get("vocab_size"),
        "context_length": text.get("max_position_embeddings"),
    }


def _hugging_face_images(content: bytes) -> About:
    config = _parse(content)
    size = config.get("size")
    resize_mode = None
    if isinstance(size, dict) and config.get("do_resize", True):
        resize_mode = "shortest" if "shortest_edge" in size else "squash" if "height" in size else None
    return {
        "mean": _numbers(config.get("image_mean")),
        "std": _numbers(config.get("image_std")),
        "interpolation": _RESAMPLING.get(config.get("resample", -1)),
        "resize_mode": resize_mode,
    }


def _vocabulary(content: bytes) -> About:
    """The rules by which CLIP's tokenizer joins bytes to words, whatever note stands above them and however packed."""
    text = zlib.decompressobj(wbits=31).decompress(content, _LONGEST_FILE) if content[:2] == b"\x1f\x8b" else content
    rules = text.decode("utf-8", "ignore").splitlines()[1 : _MERGES + 1]
    return {"vocabulary": hashlib.sha256("\n".join(rules).encode()).hexdigest()[:12] if rules else None}


_READERS: dict[str, Callable[[bytes], About]] = {
    "config.json": _hugging_face_model,
    "preprocessor_config.json": _hugging_face_images,
    "open_clip_config.json": lambda content: about_open_clip(_parse(content)),
    "merges.txt": _vocabulary,
    "merges.txt.gz": _vocabulary,
}
DESCRIPTIONS = frozenset(_READERS)
"""Names of the files that are read."""


def _parse(content: bytes) -> Mapping[str, Any]:
    config = json.loads(content)
    return config if isinstance(config, dict) else {}


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _numbers(values: Any) -> tuple[float, ...] | None:
    return tuple(round(float(value), 4) for value in values) if isinstance(values, list | tuple) else None
