"""Zero-shot heads: one class vector per class name, built from text, then frozen and kept by content."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import Cache, Entry
from .clip import Clip
from .store import digest_of
from .versions import arithmetic, source_digest


@torch.no_grad()
def zero_shot_head(clip: Clip, classes: list[str], templates: list[str]) -> Tensor:
    """Class vectors times the logit scale, float32 (classes, embedding).

    Per class the unit text embeddings of all templates are averaged and made unit length again, as in the paper's
    evaluation (Gargiulo et al. 2025, Sec. 5; heads of Ilharco et al. 2023).
    """
    rows = []
    for name in classes:
        tokens = clip.tokenizer([template.format(name) for template in templates]).to(clip.device)
        vectors = F.normalize(clip.model.encode_text(tokens).float(), dim=-1)
        rows.append(F.normalize(vectors.mean(0), dim=-1))
    return torch.stack(rows) * clip.logit_scale


def kept_head(clip: Clip, classes: list[str], templates: list[str], cache: Cache | None) -> tuple[Tensor, str]:
    """The head, built once for all who share the cache, and its key."""
    key = head_key(clip, classes, templates)

    def build() -> Entry:
        return Entry({"head": zero_shot_head(clip, classes, templates).cpu()}, {"classes": classes})

    entry = cache.tensors("head", key, build) if cache else build()
    return entry.tensors["head"].to(clip.device), key


def head_key(clip: Clip, classes: list[str], templates: list[str]) -> str:
    """SHA-256 (64 hex digits) over all that a head depends on: text tower, tokenizer, class names, templates, code."""
    prompts = [templates[0].format(name) for name in classes] + [template.format(classes[0]) for template in templates]
    tokens = clip.tokenizer(prompts).tolist()  # tells one tokenizer from another
    code = source_digest(("tsvlib.head", "tsvlib.clip"))
    return digest_of(json.dumps([code, arithmetic(), clip.text_digest, classes, templates, tokens]))
