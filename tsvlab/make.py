"""Making a lab suite's files: the base, the pictures of every task, and the fine-tunes.

``make_lab`` writes data/lab/{base,pretraining,<task>,finetuned}. What was made from the same base, seed and recipe
stays, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from threading import Thread

import torch
from PIL import Image
from torch import Tensor

from tsvlib.checkpoint import Checkpoint, TensorSpec, atomic_write, open_checkpoint, write_checkpoint
from tsvlib.clip import ENCODER_PREFIX, load_clip
from tsvlib.distillation import Distillation
from tsvlib.finetune import finetune
from tsvlib.head import zero_shot_head
from tsvlib.images import load_images, write_images
from tsvlib.progress import Progress
from tsvlib.recipe import Recipe

from .pretrain import Mixture
from .tasks import SIZES, TASKS, TEMPLATES

LAB = Path("data/lab")  # where the packaged suites look
SHIPPED = Path(__file__).parent / "base"
SEED = 2611  # of the pictures; training, validation and test draw from streams of their own
LAB_RECIPE = Recipe(
    steps=80, batch=128, learning_rate=6e-4, distillation=10, distillation_batch=64, interpolation=0.1
)  # as params.yaml has it
PICTURES_MADE = "made.json"  # written last; says that a folder's pictures are all there
PRETRAINING_PICTURES = 4000


def make_lab(
    tasks: Iterable[str],
    root: Path,
    recipe: Recipe,
    seed: int = SEED,
    shipped: Path = SHIPPED,
    progress: Progress | None = None,
) -> None:
    """Make the base, and the pictures and fine-tunes of some tasks, two tasks at a time.

    Args:
        tasks: names of ``TASKS``.
        root: the folder to fill.
        recipe: of the fine-tuning.
        seed: of the pictures.
        shipped: the folder of the half-precision base.
        progress: called with (task, optimiser steps done in all, steps to do).
    """
    make_base(root / "base", shipped)
    if recipe.distillation and not _pictures_made(root / "pretraining", seed):
        make_pretraining_pictures(root / "pretraining", seed)
    todo = [task for task in tasks if not _is_made(task, root, recipe, seed)]
    if not todo:
        return
    context = get_context("spawn")  # a forked torch can hang
    with context.Manager() as manager, ProcessPoolExecutor(2, mp_context=context) as pool:
        steps: Queue[str] = manager.Queue()
        listener = Thread(target=_report, args=(steps, len(todo) * recipe.steps, progress), daemon=True)
        listener.start()
        futures = [pool.submit(_make_task, task, root, recipe, seed, steps) for task in todo]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            steps.put("")
        listener.join()


def _report(steps: Queue[str], total: int, progress: Progress | None) -> None:
    """Pass on each step that a process has done, until the empty name that ends it."""
    done = 0
    while task := steps.get():
        done += 1
        if progress:
            progress(task, done, total)


def make_base(folder: Path, shipped: Path = SHIPPED) -> None:
    """Unpack the shipped half-precision base: the whole CLIP for heads, and its image encoder for merging."""
    packed = open_checkpoint(shipped / "model.safetensors")
    origin = {"kind": "base", "name": "tsvlab", "shipped": packed.digest}
    encoder_file = folder / "encoder.safetensors"
    if encoder_file.exists() and open_checkpoint(encoder_file).metadata == origin:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("open_clip_config.json", "merges.txt.gz"):
        shutil.copyfile(shipped / name, folder / name)
    whole = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in packed.items()}
    encoder = {name: tensor for name, tensor in whole.items() if name.startswith(ENCODER_PREFIX)}
    for file, tensors in (("model.safetensors", whole), ("encoder.safetensors", encoder)):
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        write_checkpoint(folder / file, specs, tensors.items(), origin)


def make_pictures(task: str, folder: Path, seed: int) -> None:
    """Draw a task's three splits and write them as parquet with classes.json."""
    lab_task = TASKS[task]()
    for split in SIZES:
        pictures, labels = lab_task.draw(split, seed)
        _write_split(folder, split, pictures, labels)
    _write_json(folder / "classes.json", lab_task.classes)
    _write_json(folder / PICTURES_MADE, {"seed": seed})


def make_pretraining_pictures(folder: Path, seed: int) -> None:
    """Draw pictures as the base was pre-trained on, for fine-tunes to distil on, and write them as a train split."""
    pictures, _ = Mixture(seed).batch(PRETRAINING_PICTURES)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    _write_split(folder, "train", pictures[order], torch.zeros(len(order), dtype=torch.long))
    _write_json(folder / "classes.json", ["any"])
    _write_json(folder / PICTURES_MADE, {"seed": seed})


def _write_split(folder: Path, split: str, pictures: Tensor, labels: Tensor) -> None:
    write_images(folder, split, [_png(picture) for picture in pictures], labels.tolist())


def _png(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_json(path: Path, content: object) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _files(task: str, root: Path) -> tuple[Path, Path]:
    """A task's folder of pictures and its fine-tuned checkpoint."""
    return root / task, root / "finetuned" / f"{task}.safetensors"


def _origin(base: Checkpoint, recipe: Recipe, seed: int) -> dict[str, object]:
    """What a fine-tune was made from, as its header says it."""
    return {"base": base.digest, "recipe": recipe.model_dump(), "seed": seed}


def _pictures_made(folder: Path, seed: int) -> bool:
    made = folder / PICTURES_MADE
    return made.exists() and json.loads(made.read_text()) == {"seed": seed}


def _is_made(task: str, root: Path, recipe: Recipe, seed: int) -> bool:
    pictures, out = _files(task, root)
    if not (_pictures_made(pictures, seed) and out.exists()):
        return False
    base = open_checkpoint(root / "base" / "encoder.safetensors")
    return open_checkpoint(out).metadata.get("origin") == _origin(base, recipe, seed)


def _make_task(task: str, root: Path, recipe: Recipe, seed: int, steps: Queue[str]) -> None:
    """Draw one task's pictures and fine-tune the base on them, in a process of its own."""
    torch.set_num_threads(1)  # two of these run side by side; threads inside would only spin
    torch.set_float32_matmul_precision("medium")  # products in bfloat16 where the processor has them: 1.7 times faster
    pictures, out = _files(task, root)
    if not _pictures_made(pictures, seed):
        make_pictures(task, pictures, seed)
    clip = load_clip(root / "base")
    base = open_checkpoint(root / "base" / "encoder.safetensors")
    head = zero_shot_head(clip, json.loads((pictures / "classes.json").read_text()), TEMPLATES)
    finetune(
        clip, head, load_images(pictures, "train"), out, recipe,
        progress=lambda done, total: steps.put(task), origin=_origin(base, recipe, seed),
        distillation=_distillation(root) if recipe.distillation else None,
    )  # fmt: skip


@cache
def _distillation(root: Path) -> Distillation:
    """One for all tasks of a process: the base sees the pictures once."""
    return Distillation(load_clip(root / "base"), load_images(root / "pretraining", "train"))
