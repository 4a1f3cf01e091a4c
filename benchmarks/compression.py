"""``python -m benchmarks.compression --suite lab-8``: TSV-C beside other ways of storing fine-tunes, at the same bytes.

Bytes are those of what is stored (factors, bit masks, codes, scales), for archives those of the file. Every way keeps
what is no matrix in 16 bits. Writes compression.md, compression.json and compression.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tsvlib.archive import Archive, compress
from tsvlib.candidate import Candidate
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.evaluate import Evaluator
from tsvlib.factors import factorise
from tsvlib.masked import density_within, magnitude_masked, tall_masked
from tsvlib.suite import load_suite
from tsvlib.task_vector import TaskMatrix

SHARES = (0.1, 0.05, 0.025)
Deltas = dict[str, Tensor]


@dataclass(frozen=True)
class Result:
    """One way of storing all fine-tunes of a suite."""

    way: str
    bytes_ratio: float
    """Bytes per task over those of a dense encoder."""
    accuracy: float
    accuracy_normalized: float
    error: float
    """Mean over tasks of the relative Frobenius error of the task vector."""


@dataclass(frozen=True)
class Stored:
    """Decoded deltas of every task, and the bytes that they were decoded from."""

    way: str
    nbytes: int
    deltas: Callable[[str], Deltas]


def main() -> None:
    """Measure, print the table, write it with its plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression", description=main.__doc__)
    parser.add_argument("--suite", default="lab-8")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    results = measure(options.suite, options.split)
    print(write(options.out, options.suite, options.split, results))  # noqa: T201


def measure(name: str, split: str) -> list[Result]:
    """Every way on one suite, in one pass over its images."""
    suite = load_suite(name)
    base = open_checkpoint(suite.base_uri)
    tuned = {task: open_checkpoint(uri) for task, uri in suite.checkpoints.items()}
    vectors = {task: {key: one[key].float() - base[key].float() for key in base} for task, one in tuned.items()}
    dense = sum(one.nbytes for one in tuned.values())
    with tempfile.TemporaryDirectory() as folder:
        ways = list(_ways(base, tuned, vectors, dense, Path(folder)))
        candidates = [Candidate(one.way, partial(_weights, base, one)) for one in ways]
        found = Evaluator(suite, split).accuracies_of(candidates)
        reference = found[ways[0].way]
        results = []
        for one in ways:
            accuracies = found[one.way]
            ratios = [accuracy / reference[task] for task, accuracy in accuracies.items()]
            errors = [_error(one.deltas(task), vector) for task, vector in vectors.items()]
            means = (sum(values) / len(vectors) for values in (accuracies.values(), ratios, errors))
            results.append(Result(one.way, one.nbytes / dense, *means))
        return results


def table(results: list[Result]) -> pd.DataFrame:
    """One row a way, the most bytes first."""
    return pd.DataFrame(
        {
            "way": one.way,
            "bytes per task": f"{one.bytes_ratio:.2%}",
            "accuracy": f"{100 * one.accuracy:.2f}",
            "normalised": f"{100 * one.accuracy_normalized:.2f}",
            "error": f"{one.error:.3f}",
        }
        for one in sorted(results, key=lambda one: -one.bytes_ratio)
    )


def write(folder: Path, suite: str, split: str, results: list[Result]) -> str:
    """Write the three files; return the text of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (
        f"# Storing the fine-tunes of {suite}\n\nAccuracy in per cent on the {split} images; *normalised* is relative "
        "to the dense fine-tunes, task by task; *error* is relative to the task vector's norm. Bytes are per task, of "
        f"a dense encoder's.\n\n{table(results).to_markdown(index=False)}\n\n![accuracy and bytes](compression.svg)\n"
    )
    (folder / "compression.md").write_text(text)
    (folder / "compression.json").write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
    with matplotlib.rc_context({"svg.hashsalt": "tsvlib"}):
        plot(results).savefig(folder / "compression.svg", metadata={"Date": None})
    return text


def plot(results: list[Result]) -> Figure:
    """Normalised accuracy over bytes, a line for each family of ways."""
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for family in dict.fromkeys(_family(one.way) for one in results):
        points = sorted((100 * one.bytes_ratio, 100 * one.accuracy_normalized) for one in results
                        if _family(one.way) == family)  # fmt: skip
        axes.plot(*zip(*points, strict=True), marker="o", label=family)
    axes.set(xscale="log", xlabel="bytes per task (% of a dense encoder)", ylabel="normalised accuracy (%)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _family(way: str) -> str:
    return way.partition(" @")[0]


def _ways(
    base: Checkpoint, tuned: Mapping[str, Checkpoint], vectors: Mapping[str, Deltas], dense: int, folder: Path
) -> Iterator[Stored]:
    """The dense fine-tunes first; they are the reference."""
    yield Stored("dense fine-tunes", dense, vectors.__getitem__)
    for bits in (8, 4):
        yield Stored(f"int{bits} task vectors", *_quantised(vectors, bits))
    masks = tall_masked(base, tuned)
    yield Stored("TALL masks", masks.nbytes, partial(_deltas, masks.extract, base))
    spectra = {
        (task, key): torch.linalg.svdvals(_matrix(delta)).double().square().numpy()
        for task, vector in vectors.items()
        for key, delta in vector.items()
        if delta.ndim > 1
    }
    for share in SHARES:
        budget, at = int(share * dense), f" @{share:.1%}"
        fraction = _largest(lambda f: _uniform_bytes(vectors, f), budget)
        uniform = compress(base, tuned, out=folder / f"uniform{share}", rank_fraction=fraction)
        yield Stored("TSV-C uniform, fp16" + at, uniform.nbytes, partial(_archived, uniform, base))
        for dtype in ("fp16", "int8"):
            chosen = compress(base, tuned, out=folder / f"{dtype}{share}", budget=budget, dtype=dtype)  # type: ignore[arg-type]
            yield Stored(f"TSV-C by budget, {dtype}" + at, chosen.nbytes, partial(_archived, chosen, base))
        energy = _largest(lambda e: _lora_bytes(vectors, spectra, e), budget)
        yield Stored("LoRA by energy, fp16" + at, *_lora(vectors, spectra, energy))
        masks = magnitude_masked(base, tuned, density_within(base, tuned, budget))
        yield Stored("magnitude masks, fp16" + at, masks.nbytes, partial(_deltas, masks.extract, base))


def _quantised(vectors: Mapping[str, Deltas], bits: int) -> tuple[int, Callable[[str], Deltas]]:
    """Codes of so many bits with a float32 scale a row; what is no matrix in fp16."""
    largest, nbytes = 2 ** (bits - 1) - 1, 0
    for vector in vectors.values():
        for delta in vector.values():
            nbytes += math.ceil(delta.numel() * bits / 8) + 4 * len(delta) if delta.ndim > 1 else 2 * delta.numel()

    def decoded(delta: Tensor) -> Tensor:
        if delta.ndim < 2:
            return _half(delta)
        rows = _matrix(delta)
        scales = (rows.abs().amax(1, keepdim=True) / largest).clamp(min=1e-30)
        return ((rows / scales).round() * scales).reshape(delta.shape)

    return nbytes, lambda task: {key: decoded(delta) for key, delta in vectors[task].items()}


def _lora(
    vectors: Mapping[str, Deltas], spectra: Mapping[tuple[str, str], np.ndarray], energy: float
) -> tuple[int, Callable[[str], Deltas]]:
    """Factors of the least rank that holds this share of each matrix's energy, as LoRA extraction does."""

    def decoded(task: str) -> Deltas:
        found = {}
        for key, delta in vectors[task].items():
            if delta.ndim < 2:
                found[key] = _half(delta)
                continue
            factors = factorise(TaskMatrix.of(_matrix(delta), task), _energy_rank(spectra[task, key], energy))
            root = factors.S.sqrt()
            found[key] = (_half(factors.U * root) @ _half(factors.Vh * root[:, None])).reshape(delta.shape)
        return found

    return _lora_bytes(vectors, spectra, energy), decoded


def _lora_bytes(vectors: Mapping[str, Deltas], spectra: Mapping[tuple[str, str], np.ndarray], energy: float) -> int:
    return sum(
        2 * _energy_rank(spectra[task, key], energy) * sum(_matrix(delta).shape)
        if delta.ndim > 1
        else 2 * delta.numel()
        for task, vector in vectors.items()
        for key, delta in vector.items()
    )


def _energy_rank(squares: np.ndarray, energy: float) -> int:
    held = np.cumsum(squares) / max(squares.sum(), 1e-300)
    return int(np.searchsorted(held, energy)) + 1 if energy < 1 else len(squares)


def _uniform_bytes(vectors: Mapping[str, Deltas], fraction: float) -> int:
    total = 0
    for vector in vectors.values():
        total += 12_000  # headers
        for delta in vector.values():
            rank = max(1, int(min(_matrix(delta).shape) * fraction)) if delta.ndim > 1 else 0
            total += rank * (2 * sum(_matrix(delta).shape) + 4) if rank else 2 * delta.numel() + 4
    return total


def _largest(nbytes: Callable[[float], int], budget: int) -> float:
    """The largest number in (0, 1] that takes no more than the budget."""
    low, high = 1e-6, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if nbytes(middle) <= budget else (low, middle)
    return low


def _archived(archive: Archive, base: Checkpoint, task: str) -> Deltas:
    return _deltas(lambda task: archive.extract(task, base), base, task)


def _deltas(extract: Callable[[str], Checkpoint], base: Checkpoint, task: str) -> Deltas:
    model = extract(task)
    return {key: model[key].float() - base[key].float() for key in base}


def _matrix(delta: Tensor) -> Tensor:
    return delta.reshape(len(delta), -1) if delta.ndim else delta.reshape(1, 1)


def _half(values: Tensor) -> Tensor:
    return values.half().float()


def _weights(base: Checkpoint, one: Stored, task: str) -> dict[str, Tensor]:
    deltas = one.deltas(task)
    return {key: base[key].float() + deltas[key] for key in base}


def _error(found: Deltas, expected: Deltas) -> float:
    lost = sum(float((found[key] - expected[key]).double().square().sum()) for key in expected)
    return math.sqrt(lost / sum(float(delta.double().square().sum()) for delta in expected.values()))


if __name__ == "__main__":
    main()
