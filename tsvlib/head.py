"""Zero-shot heads: one class vector per class name, built from text and then frozen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip import Clip


@torch.no_grad()
def zero_shot_head(clip: Clip, classes: list[str], templates: list[str]) -> Tensor:
    """Class vectors times the logit scale, float32 (classes, embedding).

    Per class the unit text embeddings of all templates are averaged and made unit length again, as in the paper's
    evaluation (Gargiulo et al. 2025, Sec. 5; heads of Ilharco et al. 2023).
    """
    rows = []
    for name in classes:
        tokens = clip.tokenizer([template.format(name) for template in templates])
        vectors = F.normalize(clip.model.encode_text(tokens).float(), dim=-1)
        rows.append(F.normalize(vectors.mean(0), dim=-1))
    return torch.stack(rows) * clip.logit_scale
