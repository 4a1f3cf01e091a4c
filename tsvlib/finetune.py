"""Fine-tuning of an image encoder against a frozen zero-shot head, the way the benchmark's checkpoints are made."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checkpoint import Checkpoint, TensorSpec, write_checkpoint
from .clip import ENCODER_PREFIX, Clip
from .distillation import Distillation
from .errors import SettingError
from .images import LabelledImages
from .preprocessed import PreprocessedImages
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
    distillation: Distillation | None = None,
) -> Checkpoint:
    """Fine-tune the image encoder in place and write it (names ``visual.*``, float32).

    Args:
        clip: the model that starts from the base; its encoder is changed.
        head: frozen class vectors (classes, embedding), see ``zero_shot_head``.
        images: the training split.
        out: the safetensors file to write.
        progress: called with (steps done, steps).
        origin: what it is made from, JSON-serialisable, for the file's header.
        distillation: what keeps the base's features of other images, with the weight ``recipe.distillation``.

    Raises:
        SettingError: a distillation without images to distil on.
    """
    recipe = recipe or Recipe()
    if recipe.distillation and distillation is None:
        raise SettingError(
            f"distillation {recipe.distillation:g}: no images to distil on. Name some, or set distillation to 0."
        )
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
    read = PreprocessedImages(images, clip.preprocess).read
    rows = _endless_rows(len(images), recipe.batch, generator)
    if distillation:
        other_rows = _endless_rows(len(distillation), recipe.distillation_batch, Generator().manual_seed(recipe.seed))
    point: Callable[[], AbstractContextManager[None]] = nullcontext
    if recipe.interpolation < 1:
        point = _Segment(list(encoder.parameters()), recipe.interpolation, generator).random_point
    for step in range(recipe.steps):
        scale = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * scale
        pictures, labels, _ = read(next(rows))
        with point(), sdpa_kernel(attention):
            features = F.normalize(encoder(pictures), dim=-1)
            loss = F.cross_entropy(features @ head.T, labels)
            if distillation and recipe.distillation:
                loss = loss + recipe.distillation * distillation.loss(encoder, next(other_rows))
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


def _endless_rows(count: int, batch: int, generator: Generator) -> Iterator[Tensor]:
    """Rows (batch,) of a shuffled set of ``count``, epoch after epoch."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        rows, order = order[:batch], order[batch:]
        yield rows


class _Segment:
    """The straight way from the base to the weights in training, each point of which shall solve the task.

    A merge adds a task's delta scaled and mixed with others'; fine-tunes that work at every scale bear that better.
    It is the line of Wortsman et al. 2021 ("Learning Neural Network Subspaces") with one end kept at the base.
    """

    def __init__(self, weights: list[torch.nn.Parameter], least: float, generator: Generator) -> None:
        self.weights = weights
        self.base = [weight.detach().clone() for weight in weights]
        self.least = least
        self.generator = generator

    @contextmanager
    def random_point(self) -> Iterator[None]:
        """Hold the weights at a random point within, and give them the gradient that was taken there."""
        share = self.least + (1 - self.least) * torch.rand((), generator=self.generator).item()
        end = [weight.detach().clone() for weight in self.weights]
        with torch.no_grad():
            for weight, base in zip(self.weights, self.base, strict=True):
                weight.copy_(torch.lerp(base, weight, share))
        yield
        with torch.no_grad():
            for weight, trained in zip(self.weights, end, strict=True):
                weight.copy_(trained)
                if weight.grad is not None:
                    weight.grad.mul_(share)
