"""What lies beside the weights and tells how they are meant: activation and preprocessing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .location import Location

_LONGEST_FILE = 2**20  # bytes; a configuration has a few thousand


def about_model(location: Location) -> dict[str, Any]:
    """Activation, image size, mean and deviation, as far as the source or files beside the weights tell.

    ``open_clip_config.json`` (open_clip), ``config.json`` and ``preprocessor_config.json`` (Hugging Face) are read.
    """
    found: dict[str, Any] = {}
    for name, read in (
        ("config.json", _hugging_face_model),
        ("preprocessor_config.json", _hugging_face_images),
        ("open_clip_config.json", _open_clip),
    ):
        if name in location.names:
            found |= read(_read(location, name))
    found |= location.about
    return {field: value for field, value in found.items() if value is not None}


def _read(location: Location, name: str) -> Mapping[str, Any]:
    try:
        with location.file(name).opened() as file:
            content = json.loads(file.read(_LONGEST_FILE))
    except (ValueError, CheckpointError):  # a note beside the weights, not the weights: no reason to stop
        return {}
    return content if isinstance(content, dict) else {}


def _hugging_face_model(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = _part(config, "vision_config") or config
    activation = vision.get("hidden_act")
    return {"activation": "quick_gelu" if activation == "quick_gelu" else activation and "gelu"}


def _hugging_face_images(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"mean": _numbers(config.get("image_mean")), "std": _numbers(config.get("image_std"))}


def _open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
    model, images = _part(config, "model_cfg"), _part(config, "preprocess_cfg")
    return {
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu" if model else None,
        "image_size": _part(model, "vision_cfg").get("image_size"),
        "mean": _numbers(images.get("mean")),
        "std": _numbers(images.get("std")),
        "interpolation": images.get("interpolation"),
        "resize_mode": images.get("resize_mode"),
    }


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _numbers(values: Any) -> tuple[float, ...] | None:
    return tuple(round(float(value), 4) for value in values) if isinstance(values, list | tuple) else None
