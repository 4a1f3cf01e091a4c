"""Fine-tuning of an image encoder against a frozen zero-shot head, the way the benchmark's checkpoints are made."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checkpoint import Checkpoint, TensorSpec, write_checkpoint
from .clip import ENCODER_PREFIX, Clip
from .images import LabelledImages
from .recipe import Recipe

log = logging.getLogger(__name__)

FEW_TOKENS = 64


def finetune(
    clip: Clip,
    head: Tensor,
    images: LabelledImages,
    out: Path,
    recipe: Recipe | None = None,
    progress: Callable[[int, int], None] | None = None,
    origin: dict[str, Any] | None = None,
) -> Checkpoint:
    """Fine-tune the image encoder in place and write it (names ``visual.*``, float32).

    Args:
        clip: the model that starts from the base; its encoder is changed.
        head: frozen class vectors (classes, embedding), see ``zero_shot_head``.
        images: the training split.
        out: the safetensors file to write.
        progress: called with (steps done, steps).
        origin: what it is made from, JSON-serialisable, for the file's header.
    """
    recipe = recipe or Recipe()
    generator = Generator().manual_seed(recipe.seed)
    encoder = clip.model.visual
    encoder.requires_grad_(True)
    matrices = [p for p in encoder.parameters() if p.ndim >= 2]
    vectors = [p for p in encoder.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        fused=True,
    )
    # on the CPU plain products beat the fused attention kernel's backward pass for the few tokens of a small encoder
    few_tokens = encoder.positional_embedding.shape[0] <= FEW_TOKENS
    attention = [SDPBackend.MATH] if few_tokens else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    warmup = max(1, recipe.steps // 10)
    order = torch.empty(0, dtype=torch.long)
    for step in range(recipe.steps):
        if len(order) < recipe.batch:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        rows, order = order[: recipe.batch], order[recipe.batch :]
        scale = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * scale
        pictures, labels, _ = images.read(rows, clip.preprocess)
        with sdpa_kernel(attention):
            features = F.normalize(encoder(pictures), dim=-1)
            loss = F.cross_entropy(features @ head.T, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        if progress:
            progress(step + 1, recipe.steps)
    encoder.requires_grad_(False)
    log.info("fine-tuned on %s: %d steps, last loss %.3f", images.source, recipe.steps, loss.item())
    weights = {ENCODER_PREFIX + name: tensor for name, tensor in encoder.state_dict().items()}
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    metadata = {"kind": "fine-tuned", "origin": origin or {"recipe": recipe.model_dump()}}
    return write_checkpoint(out, specs, weights.items(), metadata)
