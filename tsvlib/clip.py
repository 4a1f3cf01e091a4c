"""The CLIP model around an image encoder: built by open_clip from its configuration, never downloaded here.

A model is named either as open_clip names it (``ViT-B-32-quickgelu``) or by a folder that holds
``open_clip_config.json``, ``model.safetensors`` and, for a vocabulary of its own, ``merges.txt.gz``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL.Image import Image
from torch import Tensor, nn

from .checkpoint import Checkpoint, open_checkpoint
from .errors import MismatchError, SuiteError

ENCODER_PREFIX = "visual."


@dataclass(frozen=True)
class Clip:
    """A CLIP model in evaluation mode with its preprocessing and tokenizer."""

    model: Any  # an open_clip.CLIP
    preprocess: Callable[[Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Copy an image encoder's weights (names ``visual.*``) into the model, in place.

        Raises:
            MismatchError: a parameter of the encoder is missing, unknown or of another shape.
        """
        source = weights.source if isinstance(weights, Checkpoint) else "<in memory>"
        own = dict(self.model.visual.state_dict())
        given = {name.removeprefix(ENCODER_PREFIX): name for name in weights if name.startswith(ENCODER_PREFIX)}
        problems = [f"{source}: key {ENCODER_PREFIX + name!r} is missing." for name in sorted(own.keys() - given)]
        problems += [
            f"{source}: key {ENCODER_PREFIX + name!r} is unknown to the model." for name in sorted(given.keys() - own)
        ]
        with torch.no_grad():
            for name in own.keys() & given.keys():
                tensor = weights[given[name]]
                if tensor.shape != own[name].shape:
                    problems.append(
                        f"{source}: key {given[name]!r} has shape {tuple(tensor.shape)}, "
                        f"the model needs {tuple(own[name].shape)}."
                    )
                elif not problems:
                    own[name].copy_(tensor)
        if problems:
            raise MismatchError(problems)


def load_clip(model: str | Path, weights: str | Path | None = None) -> Clip:
    """Build a CLIP model.

    Args:
        model: an open_clip model name, or a folder with ``open_clip_config.json``.
        weights: a checkpoint of the whole model; by default ``model.safetensors`` of the folder.

    Raises:
        SuiteError: the name is unknown or the folder incomplete.
    """
    folder = Path(model)
    if (folder / "open_clip_config.json").is_file():
        return _from_folder(folder, Path(weights) if weights else folder / "model.safetensors")
    if folder.is_dir() or folder.suffix or "/" in str(model):
        raise SuiteError(f"{folder}: no open_clip_config.json there. Make the model first, or name an open_clip model.")
    if str(model) not in open_clip.list_models():
        raise SuiteError(
            f"model {str(model)!r}: open_clip knows no such model. List them with open_clip.list_models()."
        )
    built, _, preprocess = open_clip.create_model_and_transforms(str(model), pretrained=None)
    return _finish(built, preprocess, open_clip.get_tokenizer(str(model)), weights)


def _from_folder(folder: Path, weights: Path) -> Clip:
    config: dict[str, Any] = json.loads((folder / "open_clip_config.json").read_text())
    built = open_clip.CLIP(**config["model_cfg"])
    cfg = config["preprocess_cfg"]
    preprocess = open_clip.image_transform(
        built.visual.image_size,
        is_train=False,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        resize_mode=cfg["resize_mode"],
    )
    length = config["model_cfg"]["text_cfg"]["context_length"]
    merges = folder / "merges.txt.gz"
    tokenizer = (
        SimpleTokenizer(str(merges), context_length=length)
        if merges.exists()
        else SimpleTokenizer(context_length=length)
    )
    return _finish(built, preprocess, tokenizer, weights)


def _finish(model: nn.Module, preprocess: Any, tokenizer: Any, weights: str | Path | None) -> Clip:
    if weights is not None:
        model.load_state_dict(dict(open_checkpoint(weights)))
    return Clip(model.float().eval(), preprocess, tokenizer)
