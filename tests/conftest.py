"""Small but real things that tests share: a CLIP of a few thousand parameters, its fine-tunes, their images."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image

from tsvlib.checkpoint import Checkpoint, TensorSpec, write_checkpoint
from tsvlib.clip import load_clip
from tsvlib.finetune import finetune
from tsvlib.head import zero_shot_head
from tsvlib.images import write_images
from tsvlib.recipe import Recipe
from tsvlib.suite import Suite, load_suite

TASKS = {"bright": ["black", "white"], "side": ["left", "right"], "stripe": ["level", "upright"]}


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict | None = None) -> Checkpoint:
    """A safetensors file of these tensors."""
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    return write_checkpoint(path, specs, tensors.items(), metadata)


def _picture(task: str, label: int, random: np.random.Generator) -> bytes:
    pixels = random.integers(0, 120, (16, 16, 3))
    area = {
        "bright": (slice(None), slice(None)) if label else (slice(0, 0), slice(None)),
        "side": (slice(None), slice(8, 16) if label else slice(0, 8)),
        "stripe": (slice(None), slice(None, None, 4)) if label else (slice(None, None, 4), slice(None)),
    }[task]
    pixels[area] += 120
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def clean_environment(home: Path, **further: str) -> dict[str, str]:
    """The environment for a command of its own: none of the state that other tests or the user have set."""
    ours = ("PREFECT_", "MLFLOW_", "TSV_STORE", "MPLCONFIGDIR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "HOME": str(home), **further}


def make_suite(folder: Path, images: int = 40) -> Path:
    """Write a whole suite below a folder: model, base, three fine-tunes, images, suite.yaml."""
    torch.manual_seed(0)
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 16, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        },
        "preprocess_cfg": {
            "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest",
        },
    }  # fmt: skip
    model = open_clip.CLIP(**config["model_cfg"])
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith("visual.")}
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "open_clip_config.json").write_text(json.dumps(config))
    write(folder / "model" / "model.safetensors", weights)
    write(folder / "base.safetensors", encoder)
    random = np.random.default_rng(0)
    tasks = {}
    for number, (task, classes) in enumerate(TASKS.items()):
        generator = torch.Generator().manual_seed(number)
        tuned = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in encoder.items()}
        write(folder / f"{task}.safetensors", tuned)
        for split in ("train", "test"):
            labels = [i % 2 for i in range(images)]
            write_images(folder / task, split, [_picture(task, label, random) for label in labels], labels)
        (folder / task / "classes.json").write_text(json.dumps(classes))
        tasks[task] = {"checkpoint": f"{task}.safetensors", "data": task}
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump({"name": "tiny", "model": "model/", "base": "base.safetensors", "tasks": tasks}))
    return file


@pytest.fixture(scope="session")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of three tasks; read only."""
    return make_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="session")
def suite(suite_file: Path) -> Suite:
    return load_suite(suite_file)


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """A suite whose fine-tunes really are fine-tuned; read only."""
    suite = load_suite(make_suite(tmp_path_factory.mktemp("tuned"), images=120))
    for task, out in suite.checkpoints.items():
        clip = load_clip(suite.clip_model)
        head = zero_shot_head(clip, suite.classes(task), suite.task(task).templates)
        recipe = Recipe(steps=80, batch=32, learning_rate=3e-3)
        finetune(clip, head, suite.images(task, "train"), Path(out), recipe)
    return suite


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Small real data sets; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("TSV_TEST_DATA", Path(__file__).parents[1] / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set TSV_TEST_DATA")
    return folder
