"""Names of CLIP's parameters: open_clip's and Hugging Face's, either from the other.

The two differ in more than names. open_clip keeps query, key and value in one ``in_proj`` matrix, Hugging Face in
three; open_clip multiplies features by ``proj``, Hugging Face stores its transpose as a linear layer. Encoders of
other families (SigLIP, timm) have names of their own and are passed through untouched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .errors import CheckpointError
from .tensors import TensorSpec

Naming = Literal["open_clip", "huggingface", "other"]

_OUTSIDE_BLOCKS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # misspelt there too
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj", "text_projection"}
_TOWERS = {"visual.": "vision_model.", "": "text_model."}
_WITHIN_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_QUERY_KEY_VALUE = tuple(f"self_attn.{part}_proj" for part in "qkv")
_OPEN_CLIP_BLOCK = re.compile(r"(visual\.|)transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_VISION_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")


@dataclass(frozen=True)
class _Part:
    """A Hugging Face parameter as a part of an open_clip one: the whole, its transpose, or one third of its rows."""

    name: str
    third: int | None = None
    transposed: bool = False

    def take(self, whole: Tensor) -> Tensor:
        """The Hugging Face tensor from open_clip's."""
        if self.third is not None:
            return whole.chunk(3)[self.third].clone()
        return whole.T.contiguous() if self.transposed else whole

    def spec(self, whole: TensorSpec) -> TensorSpec:
        shape = whole.shape
        if self.third is not None:
            shape = (shape[0] // 3, *shape[1:])
        return TensorSpec(shape[::-1] if self.transposed else shape, whole.dtype)


def naming_of(names: Iterable[str]) -> Naming:
    """Whose names these are; ``other`` for anything that is not CLIP with a vision transformer."""
    names = set(names)
    if {"vision_model.pre_layrnorm.weight", "pre_layrnorm.weight"} & names:
        return "huggingface"
    return "open_clip" if {"visual.ln_pre.weight", "visual.conv1.weight"} <= names else "other"


def to_open_clip(checkpoint: Checkpoint, base: Checkpoint | None = None) -> Checkpoint:
    """The same weights under open_clip's names; values are converted as they are read.

    Args:
        checkpoint: with Hugging Face's names; any other is handed back as it is.
        base: where to take what a fine-tuned ``CLIPVisionModel`` lacks, such as the projection; open_clip's names.

    Raises:
        CheckpointError: of query, key and value of a layer only some are there.
    """
    if naming_of(checkpoint) != "huggingface":
        return checkpoint
    given = {_with_tower(name): name for name in checkpoint if not name.endswith(".position_ids")}
    parts: dict[str, list[_Part]] = {}
    for name in given:
        if (whole := _open_clip_name(name)) not in parts:
            parts[whole] = _parts(whole)
            for part in parts[whole]:
                if part.name not in given:
                    raise CheckpointError(
                        f"{checkpoint.source}: key {given[name]!r} is there, but {part.name!r} is not; open_clip keeps "
                        "them as one. Export the whole layer."
                    )
    specs = {whole: _whole_spec(those, checkpoint, given) for whole, those in parts.items()}
    lacking = {name: spec for name, spec in base.specs.items() if name not in specs} if base else {}

    def read(name: str) -> Tensor:
        if base is not None and name in lacking:
            return base[name]
        tensors = [checkpoint[given[part.name]] for part in parts[name]]
        if parts[name][0].transposed:
            return tensors[0].T.contiguous()
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    return _derived(checkpoint, specs | lacking, read)


def to_hugging_face(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights under the names of ``transformers.CLIPModel``; values are converted as they are read.

    A checkpoint of the image encoder alone gets the names of ``CLIPVisionModelWithProjection``.

    Args:
        checkpoint: with open_clip's names; any other is handed back as it is.
    """
    if naming_of(checkpoint) != "open_clip":
        return checkpoint
    sources = {part.name: (name, part) for name in checkpoint for part in _parts(name)}
    specs = {new: part.spec(checkpoint.specs[name]) for new, (name, part) in sources.items()}

    def read(new: str) -> Tensor:
        name, part = sources[new]
        return part.take(checkpoint[name])

    return _derived(checkpoint, specs, read)


def _derived(checkpoint: Checkpoint, specs: dict[str, TensorSpec], read: Callable[[str], Tensor]) -> Checkpoint:
    return Checkpoint(specs, read, checkpoint.metadata, checkpoint.path, checkpoint.source, about=checkpoint.about)


def _with_tower(name: str) -> str:
    """Since version 5, transformers saves a ``CLIPVisionModel`` without the prefix ``vision_model.``."""
    return f"vision_model.{name}" if name.startswith(_VISION_PARTS) else name


def _parts(whole: str) -> list[_Part]:
    """The Hugging Face parameters that one of open_clip's consists of; an unknown one is its own."""
    if whole in _OUTSIDE_BLOCKS:
        return [_Part(_OUTSIDE_BLOCKS[whole], transposed=whole in _TRANSPOSED)]
    block = _OPEN_CLIP_BLOCK.fullmatch(whole)
    if not block:
        return [_Part(whole)]
    tower, number, layer, kind = block.groups()
    prefix = f"{_TOWERS[tower]}encoder.layers.{number}"
    if layer == "attn.in_proj":
        return [_Part(f"{prefix}.{name}.{kind}", third) for third, name in enumerate(_QUERY_KEY_VALUE)]
    return [_Part(f"{prefix}.{_WITHIN_BLOCKS[layer]}.{kind}")] if layer in _WITHIN_BLOCKS else [_Part(whole)]


_HUGGING_FACE_BLOCK = re.compile(r"(vision_model\.|text_model\.)encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OPEN_CLIP_OUTSIDE = {theirs: ours for ours, theirs in _OUTSIDE_BLOCKS.items()}
_OPEN_CLIP_WITHIN = {theirs: ours for ours, theirs in _WITHIN_BLOCKS.items()}
_OPEN_CLIP_TOWERS = {theirs: ours for ours, theirs in _TOWERS.items()}


def _open_clip_name(name: str) -> str:
    """The open_clip parameter that a Hugging Face one is a part of; an unknown one is its own."""
    block = _HUGGING_FACE_BLOCK.fullmatch(name)
    if not block:
        return _OPEN_CLIP_OUTSIDE.get(name, name)
    tower, number, layer, kind = block.groups()
    prefix = f"{_OPEN_CLIP_TOWERS[tower]}transformer.resblocks.{number}"
    if layer in _QUERY_KEY_VALUE:
        return f"{prefix}.attn.in_proj_{kind}"
    return f"{prefix}.{_OPEN_CLIP_WITHIN[layer]}.{kind}" if layer in _OPEN_CLIP_WITHIN else name


def _whole_spec(parts: list[_Part], checkpoint: Checkpoint, given: dict[str, str]) -> TensorSpec:
    spec = checkpoint.specs[given[parts[0].name]]
    if parts[0].transposed:
        return TensorSpec(spec.shape[::-1], spec.dtype)
    return TensorSpec((len(parts) * spec.shape[0], *spec.shape[1:]), spec.dtype) if len(parts) > 1 else spec
