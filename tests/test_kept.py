"""What is kept of the tasks' matrices and how much it interferes, against plain computation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import write

from tsvlib.archive import compress
from tsvlib.cache import Cache
from tsvlib.charts import interference_plot, kept_plot, kept_table
from tsvlib.checkpoint import Checkpoint
from tsvlib.interference import singular_task_interference
from tsvlib.kept import KeptMatrix, kept_by_archive, kept_by_merging, kept_metrics
from tsvlib.merging import merge
from tsvlib.store import Store

BLOCK = "visual.transformer.resblocks"
SHAPES = {
    f"{BLOCK}.0.mlp.c_fc.weight": (48, 24),
    f"{BLOCK}.1.mlp.c_fc.weight": (48, 24),
    f"{BLOCK}.1.attn.in_proj_weight": (36, 12),
    "visual.proj": (24, 12),
    "visual.ln_post.bias": (24,),
    "frozen.weight": (8, 8),
}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) == 2 and name != "frozen.weight"]


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return write(tmp_path / "base.safetensors", {name: torch.zeros(shape) for name, shape in SHAPES.items()})


@pytest.fixture
def tasks(tmp_path: Path, base: Checkpoint) -> dict[str, Checkpoint]:
    made = {}
    for seed, name in enumerate(["b", "a", "c"]):
        random = torch.Generator().manual_seed(seed)
        deltas = {key: (seed + 1) * torch.randn(shape, generator=random) for key, shape in SHAPES.items()}
        made[name] = write(tmp_path / f"{name}.safetensors", deltas | {"frozen.weight": torch.zeros(8, 8)})
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(Store(tmp_path / "store"))


@pytest.fixture
def kept(base: Checkpoint, tasks: dict[str, Checkpoint], cache: Cache) -> list[KeptMatrix]:
    merge(base, tasks, "tsv-m", cache=cache)
    return kept_by_merging(base, tasks, cache)


def share_kept(delta: torch.Tensor, rank: int) -> float:
    squares = torch.linalg.svdvals(delta.double()).square()
    return float(squares[:rank].sum() / squares.sum())


def test_every_matrix_is_measured_as_by_plain_computation(kept: list[KeptMatrix], tasks: dict[str, Checkpoint]) -> None:
    assert sorted(one.key for one in kept) == sorted(MATRICES), "neither vectors nor matrices that no task changes"
    for one in kept:
        rank = min(one.shape) // 3
        deltas = {task: tasks[task][one.key] for task in sorted(tasks)}
        assert one.ranks == dict.fromkeys(sorted(tasks), rank)
        assert one.sti == pytest.approx(singular_task_interference(list(deltas.values()), rank), rel=1e-4)
        assert one.energies == pytest.approx({task: share_kept(delta, rank) for task, delta in deltas.items()})
        assert one.spectrum[1] == 1
        assert max(one.spectrum) == rank


def test_the_metrics_are_the_mean_interference_and_the_share_of_all(
    kept: list[KeptMatrix], tasks: dict[str, Checkpoint]
) -> None:
    found = kept_metrics(kept)
    assert found["sti"] == pytest.approx(sum(one.sti or 0 for one in kept) / len(kept))
    whole = sum(float(tasks[task][key].square().sum()) for task in tasks for key in MATRICES)
    held = 0.0
    for task in tasks:
        for key in MATRICES:
            delta = tasks[task][key]
            held += share_kept(delta, min(delta.shape) // 3) * float(delta.square().sum())
    assert found["energy"] == pytest.approx(held / whole)
    assert kept_metrics([]) == {}


def test_a_larger_rank_keeps_more(base: Checkpoint, tasks: dict[str, Checkpoint], cache: Cache) -> None:
    shares = []
    for fraction in (0.25, 0.5, 1.0):
        merge(base, tasks, "low-rank-sum", rank_fraction=fraction, cache=cache)
        shares.append(kept_metrics(kept_by_merging(base, tasks, cache, fraction))["energy"])
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_nothing_is_computed_that_merging_has_not_left(
    base: Checkpoint, tasks: dict[str, Checkpoint], cache: Cache
) -> None:
    assert kept_by_merging(base, tasks, cache) == []
    assert "factors" not in cache.counts
    merge(base, tasks, "tsv-m", cache=cache)
    computed = cache.counts["factors"].computed
    first = kept_by_merging(base, tasks, cache)
    assert cache.counts["factors"].computed == computed
    read = cache.counts["factors"].reused
    assert kept_by_merging(base, tasks, cache) == first
    assert cache.counts["factors"].reused == read, "the second time even the factors are not read"


@pytest.mark.parametrize("given", [{}, {"budget": "60%", "dtype": "int8"}, {"rank_fraction": 1.0}])
def test_an_archive_keeps_what_its_ranks_say(
    base: Checkpoint, tasks: dict[str, Checkpoint], cache: Cache, tmp_path: Path, given: dict
) -> None:
    archive = compress(base, tasks, out=tmp_path / "archive.safetensors", cache=cache, **given)
    kept = kept_by_archive(archive, base, tasks, cache)
    assert {one.key for one in kept} == set(MATRICES)
    for one in kept:
        for task, rank in one.ranks.items():
            assert rank == archive.task(task).entries[one.key].rank
            expected = share_kept(tasks[task][one.key], rank) if rank else 1.0
            assert one.energies[task] == pytest.approx(expected, abs=1e-6)
            assert one.squared_norms[task] == pytest.approx(float(tasks[task][one.key].double().square().sum()))
    assert set(kept_metrics(kept)) == {"energy"}, "its tasks are not summed, so that nothing interferes"


def test_the_table_places_each_matrix(kept: list[KeptMatrix]) -> None:
    table = kept_table(kept).set_index("parameter")
    assert table.loc[f"{BLOCK}.1.attn.in_proj_weight", ["layer", "kind"]].tolist() == [1, "attn.in_proj"]
    assert table.loc["visual.proj", "kind"] == "visual.proj"
    assert table.index[table["layer"].isna()].tolist() == ["visual.proj"]
    assert table.loc["visual.proj", "rank/a"] == 4


def place(key: str) -> tuple[int | None, str]:
    return KeptMatrix(key=key, shape=(1, 1), ranks={}, squared_norms={}, energies={}, spectrum={}, sti=None).place


def test_places() -> None:
    assert place("vision_model.encoder.layers.11.self_attn.q_proj.weight") == (11, "self_attn.q_proj")
    assert place("visual.transformer.resblocks.3.attn.in_proj_weight[2]") == (3, "attn.in_proj[2]")
    assert place("transformer.resblocks.3.mlp.c_fc.weight") == (3, "text mlp.c_fc")
    assert place("visual.conv1.weight") == (None, "visual.conv1")
    assert place("weight") == (None, "weight")


def test_the_heat_map_has_a_cell_for_each_layer_and_kind(kept: list[KeptMatrix]) -> None:
    axes, bar = interference_plot("tsv-m", kept).axes
    cells = axes.images[0].get_array()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["–", "0", "1"]
    kinds = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(kinds) == ["attn.in_proj", "mlp.c_fc", "visual.proj"]
    by_key = {one.key: one.sti for one in kept}
    assert cells[kinds.index("mlp.c_fc"), 2] == pytest.approx(by_key[f"{BLOCK}.1.mlp.c_fc.weight"])
    assert cells[kinds.index("visual.proj"), 0] == pytest.approx(by_key["visual.proj"])
    assert cells.mask.sum() == 9 - 4
    assert "STI" in bar.get_ylabel()


def test_the_spectrum_plot_has_a_line_for_each_kind_and_the_kept_energy(kept: list[KeptMatrix]) -> None:
    spectra, energy, _ = kept_plot("tsv-m", kept).axes
    assert {line.get_label() for line in spectra.lines} == {"attn.in_proj", "mlp.c_fc", "visual.proj"}
    assert spectra.lines[0].get_ydata()[0] == 1
    assert energy.images[0].get_array().max() <= 100
