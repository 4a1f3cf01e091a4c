"""Evaluating several candidates: one pass with shared decoding, beside a plain loop as the paper's code has it.

The plain loop takes each candidate in turn, and for each decodes, preprocesses and encodes every image again
(``eval_single_dataset`` of the authors' repository, batches of 32).
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tsvlib.candidate import Candidate
from tsvlib.checkpoint import Checkpoint, TensorSpec, write_checkpoint
from tsvlib.clip import ENCODER_PREFIX, load_clip
from tsvlib.evaluate import Computing, Evaluator, Precision
from tsvlib.head import zero_shot_head
from tsvlib.images import LabelledImages, write_images
from tsvlib.suite import Suite, load_suite

from . import report
from .memory import peak_anonymous_bytes

PLAIN_BATCH = 32
PLAIN = "plain loop, fp32"
CLASSES = [f"thing {number}" for number in range(10)]
_PREPROCESSING = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic",
                  "resize_mode": "shortest"}  # fmt: skip
_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}


@dataclass(frozen=True)
class Case:
    """An encoder with random weights, and images as public data sets have them."""

    vision: Mapping[str, int]
    embedding: int
    size: tuple[int, int]
    """Width and height of the stored images."""
    format: str
    images: int


CASES = {
    "small encoder, 32 px PNG": Case(
        {"image_size": 24, "patch_size": 8, "layers": 4, "width": 256, "head_width": 32}, 64, (32, 32), "PNG", 2000
    ),
    "small encoder, 500 px JPEG": Case(
        {"image_size": 24, "patch_size": 8, "layers": 4, "width": 256, "head_width": 32}, 64, (500, 375), "JPEG", 500
    ),
    "ViT-B-32, 500 px JPEG": Case(
        {"image_size": 224, "patch_size": 32, "layers": 12, "width": 768}, 512, (500, 375), "JPEG", 64
    ),
}


@dataclass(frozen=True)
class Speed:
    """What one way of evaluating took."""

    case: str
    variant: str
    candidates: int
    images: int
    """Of all candidates together."""
    cpu_seconds: float
    same_answers: float
    """Share of answers that are the plain loop's."""


def main(words: Sequence[str] | None = None) -> None:
    """Evaluate random candidates on random images, and see what bounds on decoded images do to memory."""
    parser = report.options("evaluation", main.__doc__)
    parser.add_argument("--candidates", type=int, default=10, help="models evaluated in one pass")
    parser.add_argument("--folder", type=Path, help="of one suite to evaluate in this process, telling its peak memory")
    parser.add_argument("--bound", type=int, help="bytes of decoded images there")
    chosen = parser.parse_args(words)
    if chosen.folder:
        _report_peak(chosen.folder, chosen.bound)
        return
    speeds = [one for case in CASES for one in measure(case, chosen.candidates, report.say)]
    bounds = peak_memory(images=3000, side=224, bounds={"64 MiB": 2**26, "2 GiB": 2**31})
    parts = [
        "Random candidates on random images, process CPU seconds of all threads, decoding and heads included:",
        table(speeds),
        "Peak memory under a bound on decoded images, above that before the evaluation started:",
        bounds,
    ]
    raw = {"speed": [asdict(one) for one in speeds], "memory": bounds.to_dict("records")}
    report.write(chosen.out, "evaluation", "Evaluation", parts, raw)


def measure(case: str, candidates: int, say: Callable[[str], None]) -> list[Speed]:
    """Evaluate random candidates by the plain loop, in one pass, and in one pass of bfloat16."""
    with tempfile.TemporaryDirectory() as name:
        suite = _write_suite(Path(name), CASES[case])
        encoders = [_noisy(suite, seed) for seed in range(candidates)]
        total = candidates * CASES[case].images
        start = time.process_time()
        expected = [_plain(suite, encoder) for encoder in encoders]
        speeds = [Speed(case, PLAIN, candidates, total, time.process_time() - start, 1.0)]
        say(f"{case}: {PLAIN}")
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        for precision in precisions:
            chosen = [_candidate(str(i), one) for i, one in enumerate(encoders)]
            start = time.process_time()
            answers = Evaluator(suite, "test", Computing("cpu", precision)).answers(chosen)
            seconds = time.process_time() - start
            same = np.mean([(answers[str(i)]["task"] == one).mean() for i, one in enumerate(expected)])
            speeds.append(Speed(case, f"one pass, {precision}", candidates, total, seconds, float(same)))
            say(f"{case}: one pass, {precision}")
    return speeds


def table(speeds: list[Speed]) -> pd.DataFrame:
    """One row a case and variant."""
    plain = {one.case: one.cpu_seconds for one in speeds if one.variant == PLAIN}
    return pd.DataFrame(
        {
            "case": one.case,
            "candidates": one.candidates,
            "variant": one.variant,
            "images / CPU s": f"{one.images / one.cpu_seconds:.1f}",
            "times faster": f"{plain[one.case] / one.cpu_seconds:.2f}",
            "same answers": f"{one.same_answers:.1%}",
        }
        for one in speeds
    )


def peak_memory(images: int, side: int, bounds: Mapping[str, int]) -> pd.DataFrame:
    """Peak anonymous memory of evaluating two candidates under bounds on decoded images, each in its own process."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        vision = {"image_size": side, "patch_size": side // 2, "layers": 1, "width": 32, "head_width": 16}
        _write_suite(Path(name), Case(vision, 16, (side, side), "JPEG", images))
        for label, bound in bounds.items():
            words = [sys.executable, "-m", "benchmarks.evaluation", "--folder", name, "--bound", str(bound)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            decoded = images * 3 * side * side
            rows.append(
                {
                    "bound on decoded images": label,
                    "decoded in all MB": f"{decoded / 1e6:.0f}",
                    "peak MB above the start": f"{found['peak_bytes'] / 1e6:.0f}",
                    "images decoded": f"{found['decoded']:,}",
                }
            )
    return pd.DataFrame(rows)


def _write_suite(folder: Path, case: Case) -> Suite:
    """A suite of one task with random weights and smooth random images."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "model_cfg": {"embed_dim": case.embedding, "vision_cfg": dict(case.vision), "text_cfg": _TEXT},
        "preprocess_cfg": _PREPROCESSING,
    }
    model = open_clip.CLIP(**config["model_cfg"])
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith(ENCODER_PREFIX)}
    (folder / "model").mkdir()
    (folder / "model" / "open_clip_config.json").write_text(json.dumps(config))
    for file, tensors in ((folder / "model" / "model.safetensors", weights), (folder / "base.safetensors", encoder)):
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        write_checkpoint(file, specs, tensors.items())
    random = np.random.default_rng(0)
    encoded = [_picture(random, case) for _ in range(case.images)]
    write_images(folder / "data", "test", encoded, [i % len(CLASSES) for i in range(case.images)])
    (folder / "data" / "classes.json").write_text(json.dumps(CLASSES))
    tasks = {"task": {"checkpoint": "base.safetensors", "data": "data"}}
    text = yaml.safe_dump({"name": "bench", "model": "model/", "base": "base.safetensors", "tasks": tasks})
    (folder / "suite.yaml").write_text(text)
    return load_suite(folder / "suite.yaml")


def _picture(random: np.random.Generator, case: Case) -> bytes:
    """Coarse random colours, enlarged: they compress as photographs do."""
    width, height = case.size
    coarse = random.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(case.size, Image.Resampling.BICUBIC).save(buffer, case.format)
    return buffer.getvalue()


def _noisy(suite: Suite, seed: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    model = load_clip(suite.clip_model).model.visual
    weights = {
        ENCODER_PREFIX + name: tensor + 0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }
    return Checkpoint.from_tensors(weights)


def _candidate(name: str, encoder: Checkpoint) -> Candidate:
    return Candidate(name, lambda task: encoder)


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Images one by one, decoded and preprocessed each time they are asked for."""

    def __init__(self, images: LabelledImages, preprocess: Callable[[Image.Image], Tensor]) -> None:
        self.encoded = list(images.encoded())
        self.labels = images.labels.tolist()
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.preprocess(Image.open(io.BytesIO(self.encoded[row])).convert("RGB")), self.labels[row]


def _plain(suite: Suite, encoder: Checkpoint) -> np.ndarray:
    """One candidate's answers."""
    clip = load_clip(suite.clip_model)
    clip.load_encoder(encoder)
    head = zero_shot_head(clip, CLASSES, suite.task("task").templates)
    loader = DataLoader(_Decoded(suite.images("task", "test"), clip.preprocess), batch_size=PLAIN_BATCH)
    answers = []
    with torch.no_grad():
        for images, _ in loader:
            logits = F.normalize(clip.model.visual(images), dim=-1) @ head.T
            answers.append(logits.argmax(dim=1))
    return torch.cat(answers).numpy()


def _report_peak(folder: Path, bound: int) -> None:
    """In a process of its own: evaluate two candidates and tell what it took."""
    suite = load_suite(folder / "suite.yaml")
    decoded = 0
    read = LabelledImages.read

    def counted(images: LabelledImages, rows: Tensor, preprocess: Callable[[Image.Image], Tensor]) -> object:
        nonlocal decoded
        decoded += len(rows)
        return read(images, rows, preprocess)

    LabelledImages.read = counted  # type: ignore[assignment,method-assign]
    chosen = [_candidate(str(seed), _noisy(suite, seed)) for seed in range(2)]
    evaluator = Evaluator(suite, "test", decoded_bytes=bound)
    with peak_anonymous_bytes() as now:
        time.sleep(0.1)
    with peak_anonymous_bytes() as peak:
        evaluator.answers(chosen)
    sys.stdout.write(json.dumps({"peak_bytes": peak[0] - now[0], "decoded": decoded}) + "\n")


if __name__ == "__main__":
    main()
