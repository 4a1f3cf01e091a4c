"""open_clip's own pre-trained weights: ``open-clip://MODEL/TAG``."""

from __future__ import annotations

import re
from typing import Any

from ..errors import CheckpointError
from .hub import locate_on_hub
from .location import Location
from .remote import locate_with_fsspec

_ADDRESS = re.compile(r"open-clip://(?P<model>[^/]+)/(?P<tag>[^/]+)")
_DIGEST_IN_ADDRESS = re.compile(r"/([0-9a-f]{64})/")
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def locate_open_clip(uri: str) -> Location:
    """The weights that ``open_clip.create_model(MODEL, pretrained=TAG)`` would load.

    Raises:
        CheckpointError: open_clip knows no such model or tag, or the model's activation is not that of the weights.
        UnreachableError: the hub does not answer, or this machine is offline.
    """
    address = _ADDRESS.fullmatch(uri)
    if not address:
        raise CheckpointError(
            f"{uri}: write it as open-clip://MODEL/TAG, such as open-clip://ViT-B-32-quickgelu/openai."
        )
    model, tag = address["model"], address["tag"]
    weights, about = _look_up(uri, model, tag)
    if weights.get("hf_hub"):
        repository, _, file = weights["hf_hub"].rpartition("/")
        location = locate_on_hub(f"hf://{repository}" + (f"/{file}" if file else ""), _WEIGHTS, about)
    else:
        digest = _DIGEST_IN_ADDRESS.search(weights["url"])
        location = locate_with_fsspec(weights["url"] + (f"#sha256={digest[1]}" if digest else ""))
    return Location(uri, location.main, location.file, location.names, about)


def _look_up(uri: str, model: str, tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the weights lie, and what open_clip tells of the model."""
    import open_clip  # seconds to import

    from ..errors import did_you_mean

    config = open_clip.get_model_config(model)
    if config is None:
        raise CheckpointError(
            f"{uri}: open_clip knows no model {model!r}.{did_you_mean(model, open_clip.list_models())}"
        )
    weights = open_clip.get_pretrained_cfg(model, tag)
    if not weights:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise CheckpointError(f"{uri}: open_clip has no weights {tag!r} for {model}.{did_you_mean(tag, tags)}")
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    trained_with = "quick_gelu" if weights.get("quick_gelu") else "gelu"
    if activation != trained_with:
        other = f"{model}-quickgelu" if trained_with == "quick_gelu" else model.removesuffix("-quickgelu")
        raise CheckpointError(
            f"{uri}: the weights {tag!r} were trained with {trained_with}, but the model {model} computes "
            f"{activation}, which changes every feature without an error. Write open-clip://{other}/{tag}."
        )
    about = {"activation": activation, "image_size": config["vision_cfg"].get("image_size")}
    about |= {field: weights[field] for field in ("mean", "std", "interpolation", "resize_mode") if field in weights}
    return weights, about
