"""Pre-training of the lab's base: a small CLIP, trained once on pictures drawn as it goes, then shipped.

``tsv lab pretrain --out DIR`` writes model.safetensors, open_clip_config.json, merges.txt.gz,
log.csv and checkpoint files to resume from.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .captions import CONTEXT_LENGTH, TEMPLATES, Encoder, describe, write_merges
from .drawing import SIDE, Look, choice
from .glyphs import atlas
from .scenes import Drawn, counts, glyphs, house_number, photographs, relations, shapes, slants, textures

log = logging.getLogger(__name__)

LOOK = Look()
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def model_config(width: int, layers: int, vocab_size: int) -> dict:
    """The open_clip configuration of the base."""
    return {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": SIDE, "patch_size": 8, "layers": layers, "width": width, "head_width": 32,
            },
            "text_cfg": {
                "context_length": CONTEXT_LENGTH, "vocab_size": vocab_size, "width": 96, "heads": 3, "layers": 2,
            },
        },
        "preprocess_cfg": {
            "mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "shortest",
        },
    }  # fmt: skip


def normalise(pictures: Tensor) -> Tensor:
    """uint8 pictures (n, 3, h, w) to the float input of the encoder."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return (pictures.float() / 255 - mean) / std


def encode_text(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """``model.encode_text`` on no more columns than the longest caption needs; unit length, float32."""
    length = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(x)), tokens.argmax(1)]
    return F.normalize((pooled @ model.text_projection).float(), dim=-1)


class Mixture:
    """An endless stream of captioned pictures."""

    def __init__(self, seed: int) -> None:
        self.generator = Generator().manual_seed(seed)
        self.chance = random.Random(seed)
        letters = atlas()
        self.rows = {family: torch.tensor(letters.rows(family)) for family in dict.fromkeys(letters.family)}
        # a family is drawn in proportion to the root of its size, so that large alphabets do not crowd out small ones
        self.families = [family for family, rows in self.rows.items() for _ in range(int(len(rows) ** 0.5))]

    def characters(self, n: int) -> Tensor:
        """Atlas rows (n,) of characters of all families."""
        picked = [self.families[i] for i in choice(self.generator, n, len(self.families)).tolist()]
        return torch.stack([self.rows[f][choice(self.generator, 1, len(self.rows[f]))[0]] for f in picked])

    def digits(self, n: int) -> Tensor:
        """Atlas rows (n,) of digits."""
        rows = self.rows["digit"]
        return rows[choice(self.generator, n, len(rows))]

    def batch(self, n: int) -> tuple[Tensor, list[str]]:
        """uint8 pictures (about n, 3, SIDE, SIDE) and their captions."""
        pictures, captions = [], []
        template = self.chance.choice(TEMPLATES)  # one a batch, so that equal facts give equal captions
        for share, draw in MIXTURE:
            drawn = draw(self, max(1, round(share * n)))
            pictures.append(drawn.pictures)
            for i in range(len(drawn.pictures)):
                facts = {fact: values[i] for fact, values in drawn.facts.items()}
                captions.append(template.format(describe(facts, self.chance)))
        return torch.cat(pictures), captions


# (share of a batch, how it is drawn)
MIXTURE: tuple[tuple[float, Callable[[Mixture, int], Drawn]], ...] = (
    (0.36, lambda m, n: glyphs(m.generator, m.characters(n), LOOK)),
    (0.10, lambda m, n: glyphs(m.generator, m.characters(n), LOOK, turn=True)),
    (0.07, lambda m, n: glyphs(m.generator, m.characters(n), LOOK, position=True)),
    (0.06, lambda m, n: house_number(m.generator, m.digits(n), LOOK)),
    (0.07, lambda m, n: shapes(m.generator, n, LOOK)),
    (0.05, lambda m, n: shapes(m.generator, n, LOOK, position=True)),
    (0.06, lambda m, n: textures(m.generator, n, LOOK)),
    (0.05, lambda m, n: slants(m.generator, n, LOOK)),
    (0.08, lambda m, n: counts(m.generator, n, LOOK)),
    (0.07, lambda m, n: relations(m.generator, n, LOOK)),
    (0.03, lambda m, n: photographs(m.generator, n, LOOK)),
)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's loss where pictures share a caption: row (n,) tells each picture's caption among the distinct ones.

    Returns the loss and the share of pictures whose own caption scores highest.
    """
    logits = scale * image @ text.T
    to_text = F.cross_entropy(logits, row)
    same = F.one_hot(row, len(text)).float()
    to_image = -(same / same.sum(0) * F.log_softmax(logits, 0)).sum(0).mean()
    return (to_text + to_image) / 2, (logits.argmax(1) == row).float().mean()


def learning_rate(step: int, steps: int, peak: float, warmup: int, cooldown: float = 0.35) -> float:
    """Linear warm-up, constant, then a cosine to zero over the last share of the steps."""
    start = steps * (1 - cooldown)
    if step < warmup:
        return peak * (step + 1) / warmup
    if step < start:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start)))


def pretrain(
    out: Path, steps: int = 16000, batch: int = 192, width: int = 256, layers: int = 4, peak: float = 1e-3,
    seed: int = 0, bf16: bool = True, resume_steps: int = 500,
) -> None:  # fmt: skip
    """Train the base and write it to ``out``; continues from ``out/resume.pt`` when that exists."""
    out.mkdir(parents=True, exist_ok=True)
    write_merges(out / "merges.txt.gz")
    encoder = Encoder(out / "merges.txt.gz")
    config = model_config(width, layers, encoder.tokenizer.vocab_size)
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")

    torch.manual_seed(seed)
    model = open_clip.CLIP(**config["model_cfg"])
    decayed = [p for p in model.parameters() if p.ndim >= 2 and p is not model.token_embedding.weight]
    kept = [p for p in model.parameters() if not any(p is q for q in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
        lr=peak, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    first = 0
    if (out / "resume.pt").exists():
        state = torch.load(out / "resume.pt", weights_only=True)
        model.load_state_dict(load_file(out / "resume.safetensors"))
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    stream = Mixture(seed + 1 + first)
    spent, start = 0.0, time.process_time()
    loss_sum = accuracy_sum = 0.0
    with (out / "log.csv").open("a", newline="") as file:
        writer = csv.writer(file)
        if first == 0:
            writer.writerow(["step", "loss", "batch_accuracy", "learning_rate", "cpu_seconds"])
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak, 300)
            pictures, captions = stream.batch(batch)
            distinct = list(dict.fromkeys(captions))
            row = torch.tensor([distinct.index(caption) for caption in captions])
            tokens = encoder(distinct, stream.chance)
            # on the CPU the fused attention kernel is several times slower than plain products for 10 tokens
            with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                image = F.normalize(model.encode_image(normalise(pictures)).float(), dim=-1)
                text = encode_text(model, tokens)
            loss, accuracy = contrastive_loss(image, text, model.logit_scale.exp().clamp(max=100), row)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss_sum += loss.item()
            accuracy_sum += accuracy.item()
            if (step + 1) % 100 == 0:
                spent = time.process_time() - start
                writer.writerow(
                    [step + 1, f"{loss_sum / 100:.4f}", f"{accuracy_sum / 100:.4f}",
                     f"{optimizer.param_groups[0]['lr']:.2e}", f"{spent:.0f}"]
                )  # fmt: skip
                file.flush()
                loss_sum = accuracy_sum = 0.0
            if (step + 1) % resume_steps == 0 or step + 1 == steps:
                weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
                save_file(weights, out / "resume.safetensors")
                torch.save({"optimizer": optimizer.state_dict(), "step": step + 1}, out / "resume.pt")
    half = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file(half, out / "model.safetensors")
    log.info("wrote %s after %d steps, %.0f CPU seconds", out / "model.safetensors", steps, spent)
