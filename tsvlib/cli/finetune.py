"""``tsv finetune``"""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import open_checkpoint
from ..clip import load_clip
from ..distillation import Distillation
from ..finetune import finetune as finetune_encoder
from ..head import zero_shot_head
from ..images import load_images
from ..recipe import Recipe
from ..suite import load_suite
from .options import Printing, output_path
from .printing import progress, show


def finetune(
    *,
    suite: str,
    task: str,
    out: Path | None = None,
    steps: int = Recipe().steps,
    batch: int = Recipe().batch,
    learning_rate: float = Recipe().learning_rate,
    weight_decay: float = Recipe().weight_decay,
    seed: int = Recipe().seed,
    interpolation: float = Recipe().interpolation,
    distil_on: str | None = None,
    distillation: float = 10.0,
    distillation_batch: int = Recipe().distillation_batch,
    force: bool = False,
    printing: Printing | None = None,
) -> None:
    """Fine-tune a suite's base on one of its tasks, with the zero-shot head frozen.

    Args:
        suite: a suite's name or YAML file.
        task: the task whose train images to use.
        out: the checkpoint to write; the suite's own for that task by default.
        steps: optimiser steps.
        batch: images a step.
        learning_rate: the highest; warmed up over a tenth of the steps, then a cosine to zero.
        weight_decay: AdamW's, on matrices.
        seed: of the order of images.
        interpolation: least share of the way from the base to the weights at which a step's gradient is taken, such
            as 0.3; such fine-tunes work at every scale of their delta, and merge better. 1: at the weights themselves.
        distil_on: other images (a folder or what else a suite's 'data' takes) whose features shall stay as the base has
            them; such fine-tunes disturb each other less when they are merged.
        distillation: weight of that, against the cross-entropy.
        distillation_batch: other images a step.
        force: replace the file if it exists.
    """
    printing = printing or Printing()
    loaded = load_suite(suite)
    out = output_path(out or loaded.path(loaded.task(task).checkpoint), force)
    recipe = Recipe(
        steps=steps, batch=batch, learning_rate=learning_rate, weight_decay=weight_decay, seed=seed,
        interpolation=interpolation,
        distillation=distillation if distil_on else 0.0, distillation_batch=distillation_batch,
    )  # fmt: skip
    images = loaded.images(task, "train")
    others = load_images(distil_on, "train") if distil_on else None
    clip = load_clip(loaded.clip_model, loaded.clip_weights)
    base = open_checkpoint(loaded.base_uri)
    clip.load_encoder(base)
    head = zero_shot_head(clip, loaded.classes(task), loaded.task(task).templates)
    origin = {"base": base.digest, "task": task, "recipe": recipe.model_dump()}
    distil = Distillation(clip, others) if others else None
    with progress(f"finetune {task}", printing) as report:
        finetune_encoder(clip, head, images, out, recipe, lambda done, total: report("", done, total), origin, distil)
    result = {"out": str(out), "bytes": out.stat().st_size, "task": task, "recipe": recipe.model_dump()}
    show(result, f"{out}: fine-tuned on {len(images):,} images of {task!r} for {steps} steps", printing)
