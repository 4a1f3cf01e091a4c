"""Byte budgets: never exceeded, as good as trying everything, and never worse by being larger."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write
from hypothesis import given, settings
from hypothesis import strategies as st

from tsvlib.archive import Archive, add, compress
from tsvlib.archive.allocation import Choices, allocate, choices, least_bytes
from tsvlib.archive.budget import parse_budget
from tsvlib.archive.coding import CODINGS
from tsvlib.checkpoint import Checkpoint
from tsvlib.errors import MethodError

spectra = st.lists(st.floats(0.01, 10), min_size=1, max_size=4).map(lambda values: np.array(sorted(values)[::-1]))


@st.composite
def matrices(draw: st.DrawFn) -> tuple[str, list[tuple[tuple[int, int], np.ndarray]]]:
    """A dtype, and up to three small matrices by shape and singular values."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        values = draw(spectra)
        long = draw(st.integers(len(values), 12))
        found.append(((long, len(values)) if draw(st.booleans()) else (len(values), long), values))
    return draw(st.sampled_from(["fp16", "fp32", "int8"])), found


def every_choice(shape: tuple[int, int], values: np.ndarray, dtype: str) -> list[tuple[int, int, float]]:
    """(rank, bytes, energy) of all that can be stored of a matrix, reckoned without the code under test."""
    coding = CODINGS[dtype]
    squares = values**2
    found = [(0, coding.dense_bytes(shape), float(squares.sum()))]
    found += [(k, k * coding.triplet_bytes(shape), float(squares[:k].sum())) for k in range(1, len(values) + 1)]
    return found


def stored(options: list[Choices], ranks: list[int]) -> tuple[int, float]:
    """Bytes and energy of ranks."""
    at = [int(np.flatnonzero(one.ranks == rank)[0]) for one, rank in zip(options, ranks, strict=True)]
    return (
        sum(int(one.nbytes[i]) for one, i in zip(options, at, strict=True)),
        sum(float(one.energy[i]) for one, i in zip(options, at, strict=True)),
    )


@settings(max_examples=300, deadline=None)
@given(matrices(), st.floats(0, 1))
def test_as_good_as_trying_everything(
    given_matrices: tuple[str, list[tuple[tuple[int, int], np.ndarray]]], share: float
) -> None:
    dtype, found = given_matrices
    options = [choices(shape, values, CODINGS[dtype]) for shape, values in found]
    least, most = least_bytes(options), sum(int(one.nbytes.max()) for one in options)
    budget = least + int(share * (most - least + 10))
    nbytes, energy = stored(options, allocate(options, budget))
    assert nbytes <= budget

    everything = list(itertools.product(*[every_choice(shape, values, dtype) for shape, values in found]))
    best = max(
        sum(one[2] for one in combination) for combination in everything if sum(one[1] for one in combination) <= budget
    )
    steps = [np.diff(one.energy).max(initial=0) for one in options]
    assert best - max(steps) - 1e-9 <= energy <= best * (1 + 1e-9)  # the best, up to one choice that did not fit
    if nbytes == budget:
        assert energy >= best * (1 - 1e-9)
    whole = sum(float((values**2).sum()) for _, values in found)
    if budget >= most:
        assert energy == pytest.approx(whole)


@settings(max_examples=200, deadline=None)
@given(matrices(), st.integers(0, 400), st.integers(0, 400))
def test_a_larger_budget_never_holds_less(
    given_matrices: tuple[str, list[tuple[tuple[int, int], np.ndarray]]], one: int, other: int
) -> None:
    dtype, found = given_matrices
    options = [choices(shape, values, CODINGS[dtype]) for shape, values in found]
    least = least_bytes(options)
    smaller, larger = (allocate(options, least + extra) for extra in sorted((one, other)))
    assert stored(options, smaller)[1] <= stored(options, larger)[1] * (1 + 1e-12)


class Models:
    """A base and two fine-tunes with spectra of very different decay."""

    def __init__(self, folder: Path) -> None:
        random = torch.Generator().manual_seed(0)
        start = {f"{name}.weight": torch.randn(64, 48, generator=random) for name in "abc"}
        start |= {"bias": torch.randn(48, generator=random), "frozen": torch.randn(48, 48, generator=random)}
        self.base = write(folder / "base.safetensors", start)
        self.tasks = {}
        for task in ("one", "two"):
            tuned = dict(start)
            for power, name in enumerate("abc"):
                spectrum = 0.1 * torch.arange(1, 49) ** (-0.5 * power)
                left = torch.linalg.qr(torch.randn(64, 48, generator=random)).Q
                right = torch.linalg.qr(torch.randn(48, 48, generator=random)).Q
                tuned[f"{name}.weight"] = start[f"{name}.weight"] + (left * spectrum) @ right
            tuned["bias"] = start["bias"] + 0.1
            self.tasks[task] = write(folder / f"{task}.safetensors", tuned)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def squared_error(archive: Archive, models: Models) -> float:
    """Over all tasks."""
    total = 0.0
    for task, tuned in models.tasks.items():
        model = archive.extract(task, models.base)
        total += sum(float((model[name] - tuned[name]).double().norm()) ** 2 for name in tuned)
    return total


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("weighting", ["energy", "task", "matrix"])
def test_a_file_of_at_most_the_budget_that_is_better_with_more(
    models: Models, tmp_path: Path, dtype: str, weighting: str
) -> None:
    errors = []
    for share in (20, 25, 30, 40, 60, 90):
        out = tmp_path / f"{share}.safetensors"
        archive = compress(models.base, models.tasks, out=out, budget=f"{share}%", dtype=dtype, weighting=weighting)  # type: ignore[arg-type]
        dense = sum(task.nbytes for task in models.tasks.values())
        assert out.stat().st_size <= 0.01 * share * dense
        if share <= 25:  # by 60 %, all is stored whole
            assert out.stat().st_size > 0.01 * share * dense - 1500
        assert out.stat().st_size == archive.nbytes
        errors.append(squared_error(archive, models))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 * errors[0]


def test_less_error_than_the_same_share_of_every_matrix(models: Models, tmp_path: Path) -> None:
    uniform = compress(models.base, models.tasks, out=tmp_path / "u.safetensors", rank_fraction=0.25)
    chosen = compress(models.base, models.tasks, out=tmp_path / "b.safetensors", budget=uniform.nbytes)
    assert chosen.nbytes <= uniform.nbytes
    assert squared_error(chosen, models) < 0.8 * squared_error(uniform, models)


def test_a_budget_of_added_tasks(models: Models, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    compress(models.base, {"one": models.tasks["one"]}, out=path, budget="40%", dtype="int8")
    archive = add(path, models.base, {"two": models.tasks["two"]})  # as the one that is there
    assert archive.task("two").metadata["parameters"] == archive.task("one").metadata["parameters"]
    assert archive.task_nbytes("two") <= 0.4 * models.tasks["two"].nbytes
    assert add(path, models.base, {"three": models.tasks["two"]}, budget=9000).task_nbytes("three") <= 9000


def test_a_budget_below_the_minimum(models: Models, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(MethodError) as caught:
        compress(models.base, models.tasks, out=out, budget=5000)
    least = int(str(caught.value).split("minimum of ")[1].split(" ")[0].replace(",", ""))
    dense = sum(task.nbytes for task in models.tasks.values())
    assert str(caught.value) == (
        f"budget = 5000: 5,000 bytes are below the minimum of {least:,} ({100 * least / dense:.2f} % of the "
        "fine-tunes): headers, vectors and one singular triplet of every matrix."
    )
    assert not out.exists()
    assert compress(models.base, models.tasks, out=out, budget=least).nbytes <= least


def test_budgets_as_people_write_them() -> None:
    written = {
        "10%": 100,
        "2.5 %": 25,
        "1.5kB": 1500,
        "1.5 MB": 1_500_000,
        "1KiB": 1024,
        "700": 700,
        700: 700,
        1e3: 1000,
    }
    assert {text: parse_budget(text, 1000).nbytes for text in written} == written
    for wrong in ("", "ten", "-5", "0", "0%", "5 TB", "10%%"):
        with pytest.raises(MethodError) as caught:
            parse_budget(wrong, 1000)
        assert str(caught.value) == (
            f"budget = {wrong!r}: write bytes, such as 1500000 or '1.5 MB', or a share, such as '10%'."
        )


def test_an_unknown_weighting(models: Models, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="weighting = 'layer': choose one of energy, task, matrix, accuracy"):
        compress(models.base, models.tasks, out=tmp_path / "a", budget="50%", weighting="layer")  # type: ignore[arg-type]


def test_a_task_that_is_the_base(models: Models, tmp_path: Path) -> None:
    same: dict[str, Checkpoint] = {"same": models.base, "one": models.tasks["one"]}
    archive = compress(models.base, same, out=tmp_path / "a.safetensors", budget="30%")
    assert archive.task("same").entries == {}
    assert "frozen" not in archive.task("one").entries


def test_what_matters_more_gets_more_of_the_budget(models: Models, tmp_path: Path) -> None:
    matrices = [name for name, spec in models.base.specs.items() if len(spec.shape) == 2]
    chosen, task = matrices[0], next(iter(models.tasks))

    def rank(sensitivity: float) -> int:
        matters = {task: dict.fromkeys(models.base.specs, 1.0) for task in models.tasks}
        matters[task][chosen] = sensitivity
        archive = compress(models.base, models.tasks, out=tmp_path / f"{sensitivity}", budget="30%",
                           weighting="accuracy", sensitivities=matters)  # fmt: skip
        assert archive.nbytes <= 0.3 * sum(one.nbytes for one in models.tasks.values())
        found = archive.task(task).entries[chosen].rank
        return found or min(models.base.specs[chosen].shape)

    assert rank(1e-6) < rank(1e6)


def test_accuracy_needs_sensitivities_of_every_matrix(models: Models, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="weighting = 'accuracy': goes with sensitivities"):
        compress(models.base, models.tasks, out=tmp_path / "a", budget="50%", weighting="accuracy")
    nothing: dict[str, dict[str, float]] = {task: {"other": 1.0} for task in models.tasks}
    with pytest.raises(MethodError, match=r"nothing is known of parameter '.*' of task"):
        compress(models.base, models.tasks, out=tmp_path / "a", budget="50%", weighting="accuracy",
                 sensitivities=nothing)  # fmt: skip
