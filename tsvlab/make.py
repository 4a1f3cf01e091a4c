"""Making a lab suite's files: the base, the pictures of every task, and the fine-tunes.

``python -m tsvlab make lab-8`` writes data/lab/{base,<task>,finetuned}; what is there already stays.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tsvlib.checkpoint import TensorSpec, atomic_write, open_checkpoint, write_checkpoint
from tsvlib.clip import ENCODER_PREFIX, load_clip
from tsvlib.finetune import Recipe, finetune
from tsvlib.head import zero_shot_head
from tsvlib.images import load_images, write_images

from .tasks import SIZES, TASKS, TEMPLATES

RECIPE = Recipe()
SHIPPED = Path(__file__).parent / "base"


def make_base(folder: Path, shipped: Path = SHIPPED) -> None:
    """Unpack the shipped half-precision base: the whole CLIP for heads, and its image encoder for merging."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("open_clip_config.json", "merges.txt.gz"):
        shutil.copyfile(shipped / name, folder / name)
    whole = {
        name: t.float() if t.is_floating_point() else t
        for name, t in open_checkpoint(shipped / "model.safetensors").items()
    }
    encoder = {name: tensor for name, tensor in whole.items() if name.startswith(ENCODER_PREFIX)}
    for file, tensors in (("model.safetensors", whole), ("encoder.safetensors", encoder)):
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        write_checkpoint(folder / file, specs, tensors.items(), {"kind": "base", "name": "tsvlab"})


def make_pictures(task: str, folder: Path, seed: int) -> None:
    """Draw a task's three splits and write them as parquet, with classes.json last."""
    lab_task = TASKS[task]()
    for split in SIZES:
        pictures, labels = lab_task.draw(split, seed)
        write_images(folder, split, [_png(picture) for picture in pictures], labels.tolist())
    with atomic_write(folder / "classes.json") as file:
        file.write(json.dumps(lab_task.classes, indent=1).encode())


def _png(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def make_task(task: str, root: Path, seed: int, recipe: Recipe) -> str:
    """Draw one task's pictures and fine-tune the base on them, unless both are there. Gives the task's name."""
    torch.set_num_threads(1)  # two of these run side by side; threads inside would only spin
    pictures, out = root / task, root / "finetuned" / f"{task}.safetensors"
    if not (pictures / "classes.json").exists():
        make_pictures(task, pictures, seed)
    if not out.exists():
        clip = load_clip(root / "base")
        head = zero_shot_head(clip, json.loads((pictures / "classes.json").read_text()), TEMPLATES)
        finetune(clip, head, load_images(pictures, "train"), out, recipe)
    return task
