"""How much each parameter of a fine-tune matters to its answers, measured on validation images.

A small error in the weights raises the loss, to second order and where it points nowhere in particular, by half its
squared norm times the mean diagonal of the Fisher information (LeCun et al. 1990, Optimal Brain Damage; Hassibi & Stork
1993). So a byte budget that weights energy by it is spent where accuracy is lost, not where weights are large.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .checkpoint import Checkpoint
from .clip import ENCODER_PREFIX, Clip, load_clip
from .head import zero_shot_head
from .images import LabelledImages
from .progress import Progress
from .suite import Suite

IMAGES = 256
_BATCH = 32


def fisher_diagonal(
    clip: Clip, head: Tensor, images: LabelledImages, most: int = IMAGES, seed: int = 0
) -> dict[str, float]:
    """Mean over the entries of each parameter of the Fisher information's diagonal, per image.

    Labels are drawn from the model's own answers. Gradients of single images are not formed: each image's loss gets a
    random sign, and the square of the summed gradient then has the sum of the squares as its mean.

    Args:
        clip: with the fine-tune's weights; they are left as they are.
        head: class vectors (classes, embedding).
        images: of the validation split.
        most: images to use, evenly spaced.
        seed: of the drawn labels and signs.

    Returns:
        Parameter of the encoder (``visual.*``) -> its mean.
    """
    generator = Generator().manual_seed(seed)
    parameters = {ENCODER_PREFIX + name: p for name, p in clip.model.visual.named_parameters()}
    sums = dict.fromkeys(parameters, 0.0)
    seen = 0
    clip.model.visual.requires_grad_(True)
    try:
        for pictures, _, kept in images.subset(images.spread(most).unique()).batches(_BATCH, clip.preprocess):
            logits = F.normalize(clip.model.visual(pictures.to(clip.device)), dim=-1) @ head.T
            drawn = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
            signs = torch.randint(2, (len(kept),), generator=generator) * 2.0 - 1
            losses = F.cross_entropy(logits, drawn.to(logits.device), reduction="none")
            gradients = torch.autograd.grad(
                (losses * signs.to(losses)).sum(), list(parameters.values()), allow_unused=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                sums[name] += 0.0 if gradient is None else float(gradient.square().mean())
            seen += len(kept)
    finally:
        clip.model.visual.requires_grad_(False)
    return {name: total / max(1, seen) for name, total in sums.items()}


def sensitivities(
    suite: Suite, tasks: Mapping[str, Checkpoint], images: int = IMAGES, progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """:func:`fisher_diagonal` of every task's fine-tune on its own validation images.

    Args:
        suite: with data and class names of the tasks.
        tasks: name -> fine-tuned checkpoint.
        images: of each task at most.
        progress: called with (task just done, number done, number of all).

    Raises:
        SuiteError, DataError: the suite says too little, or its images cannot be read.
        MismatchError: a fine-tune does not fit the suite's model.
    """
    clip = load_clip(suite.clip_model, suite.clip_weights)
    found = {}
    for done, (task, checkpoint) in enumerate(tasks.items(), 1):
        head = zero_shot_head(clip, suite.classes(task), suite.task(task).templates)
        clip.load_encoder(checkpoint)
        found[task] = fisher_diagonal(clip, head, suite.images(task, "validation"), images)
        if progress:
            progress(task, done, len(tasks))
    return found
