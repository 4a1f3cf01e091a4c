"""The cache of factors and merged deltas: what is found again, and that results never depend on what is in it."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import write
from hypothesis import given
from hypothesis import strategies as st

import tsvlib.factor_cache
from tsvlib.archive import compress
from tsvlib.cache import Cache, default_cache
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.errors import CheckpointError, SettingError, TSVWarning
from tsvlib.factor_cache import FactorCache
from tsvlib.factors import canonical_rank, factorise, kept_rank
from tsvlib.merging import merge
from tsvlib.methods import method_names
from tsvlib.store import Store
from tsvlib.task_vector import TaskMatrix

SHAPES = {"a.weight": (96, 64), "b.weight": (64, 80), "c.weight": (64, 64)}
FACTORS_OF_A_TASK = len(SHAPES)
Tensors = dict[str, torch.Tensor]


def tensors(seed: int) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()} | {
        "c.bias": torch.randn(64, generator=random)
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class Models:
    """A base and nine fine-tunes, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write(folder / "base.safetensors", tensors(0))
        for number in range(1, 10):
            self.fine_tune(number)

    def fine_tune(self, number: int, **changed: torch.Tensor) -> None:
        tuned = {name: tensor + 0.1 * tensors(number)[name] for name, tensor in tensors(0).items()}
        write(self.folder / f"{number}.safetensors", tuned | changed)

    def base(self) -> Checkpoint:
        return open_checkpoint(self.folder / "base.safetensors")

    def tasks(self, count: int = 8) -> dict[str, Checkpoint]:
        return {f"task{n}": open_checkpoint(self.folder / f"{n}.safetensors") for n in range(1, count + 1)}


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


def work(cache: Cache) -> tuple[int, int, int, int]:
    """Factors reused and computed, merged matrices reused and computed."""
    counts = [cache.work().get(kind, {"reused": 0, "computed": 0}) for kind in ("factors", "merged")]
    return tuple(count[what] for count in counts for what in ("reused", "computed"))  # type: ignore[return-value]


def merged(models: Models, store: Store, tasks: int = 8, **options: object) -> tuple[int, int, int, int]:
    """Merge with a cache, check that the bits are those of a merge without one, and tell what work that was."""
    cache = Cache(store)
    found = merge(models.base(), models.tasks(tasks), cache=cache, **options)  # type: ignore[arg-type]
    assert found.digest == merge(models.base(), models.tasks(tasks), **options).digest  # type: ignore[arg-type]
    return work(cache)


def test_nothing_new_computes_nothing(models: Models, store: Store) -> None:
    assert merged(models, store) == (0, 24, 0, 3)
    assert merged(models, store) == (0, 0, 3, 0)


def test_a_new_alpha_computes_nothing(models: Models, store: Store) -> None:
    merged(models, store)
    assert merged(models, store, alpha=0.5) == (0, 0, 3, 0)


def test_a_post_step_computes_nothing_before_it(models: Models, store: Store) -> None:
    merged(models, store)
    assert merged(models, store, post="svc") == (0, 0, 3, 0)


def test_a_ninth_task_computes_its_own_factors(models: Models, store: Store) -> None:
    merged(models, store)
    assert merged(models, store, tasks=9) == (24, 3, 0, 3)


def test_a_removed_task_computes_no_factors(models: Models, store: Store) -> None:
    merged(models, store, tasks=9)
    assert merged(models, store, tasks=8) == (24, 0, 0, 3)


def test_a_changed_layer_computes_itself(models: Models, store: Store) -> None:
    merged(models, store)
    models.fine_tune(3, **{"b.weight": torch.randn(64, 80)})
    assert merged(models, store) == (7, 1, 2, 1)


def test_a_changed_vector_computes_no_factors(models: Models, store: Store) -> None:
    merged(models, store)
    models.fine_tune(3, **{"c.bias": torch.randn(64)})
    assert merged(models, store) == (0, 0, 3, 0)


def test_a_new_method_computes_no_factors(models: Models, store: Store) -> None:
    merged(models, store)
    assert merged(models, store, method="low-rank-sum") == (24, 0, 0, 3)


def test_another_rank_within_a_canonical_one_computes_no_factors(models: Models, store: Store) -> None:
    merged(models, store)
    assert merged(models, store, rank_fraction=0.12) == (24, 0, 0, 3)
    assert merged(models, store, rank_fraction=0.5) == (0, 24, 0, 3)


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_another_mode_computes_its_own(models: Models, store: Store, mode: str) -> None:
    merged(models, store)
    assert merged(models, store, mode=mode) == (0, 24, 0, 3)


@pytest.mark.parametrize("method", method_names())
def test_every_method_gives_the_same_bits_with_and_without(models: Models, store: Store, method: str) -> None:
    merged(models, store, method=method)
    assert merged(models, store, method=method, alpha=0.7)[2:] == (3, 0)


def test_archives_share_the_factors(models: Models, store: Store, tmp_path: Path) -> None:
    merged(models, store)
    cache = Cache(store)
    compress(models.base(), models.tasks(), out=tmp_path / "with.safetensors", cache=cache)
    compress(models.base(), models.tasks(), out=tmp_path / "without.safetensors")
    assert work(cache) == (24, 0, 0, 0)
    assert (tmp_path / "with.safetensors").read_bytes() == (tmp_path / "without.safetensors").read_bytes()


def test_factors_in_the_cache_are_those_computed_without(store: Store) -> None:
    matrix = TaskMatrix.of(torch.randn(60, 48), "a")
    for k in (5, 8, 6, 7, 8, 32, 48, 33):
        found, fresh = FactorCache(Cache(store))(matrix, k, "exact"), factorise(matrix, k)
        assert all(torch.equal(*pair) for pair in ((found.U, fresh.U), (found.S, fresh.S), (found.Vh, fresh.Vh)))
        assert (found.gap, found.mode, found.rank) == (fresh.gap, fresh.mode, k)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 60))
def test_canonical_ranks(rows: int, columns: int, tasks: int) -> None:
    k = kept_rank((rows, columns), tasks)
    rank = canonical_rank(k, (rows, columns))
    assert k <= rank <= min(rows, columns)
    assert canonical_rank(rank, (rows, columns)) == rank
    assert rank <= max(2 * k, 1) or rank == min(rows, columns)
    assert canonical_rank(k, (rows, columns), "fast") == k


def test_which_numbers_of_tasks_share_factors() -> None:
    for tasks, rank in [(range(8, 12), 96), (range(12, 16), 68), (range(16, 22), 48)]:
        assert {canonical_rank(kept_rank((3072, 768), some), (3072, 768)) for some in tasks} == {rank}


def blobs(store: Store) -> list[Path]:
    return [file for file in (store.root / "blobs").rglob("*") if file.is_file()]


def cut(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-9])


def alter(file: Path) -> None:
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut, alter])
def test_damaged_entries_are_noticed_and_made_anew(
    models: Models, store: Store, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    merged(models, store)
    count = len(blobs(store))
    for file in blobs(store):
        damage(file)
    with caplog.at_level(logging.WARNING):
        assert merged(models, store) == (0, 24, 0, 3)
    told = [line for line in caplog.messages if "truncated or altered; removed, and made anew" in line]
    assert len(told) == (0 if damage is Path.unlink else count)
    assert merged(models, store) == (0, 0, 3, 0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha256": "00"}', '{"sha256": null}'])
def test_damaged_records_are_made_anew(models: Models, store: Store, content: str) -> None:
    merged(models, store)
    for record in (store.root / "records").rglob("*.json"):
        record.write_text(content)
    assert merged(models, store) == (0, 24, 0, 3)


def test_a_damaged_entry_touches_no_other(models: Models, store: Store) -> None:
    merged(models, store)
    for kind in ("merged", "factors"):
        record = min((store.root / "records" / kind).rglob("*.json"))
        alter(store.blob(json.loads(record.read_text())["sha256"]))
    assert merged(models, store) in {(8, 0, 2, 1), (7, 1, 2, 1)}  # by whether both are of the same parameter


def test_recomputing_replaces_what_is_kept(models: Models, store: Store) -> None:
    merged(models, store)
    entries = [file.stat().st_mtime_ns for file in (store.root / "records").rglob("*.json")]
    cache = Cache(store, since=float("inf"))
    merge(models.base(), models.tasks(), cache=cache)
    assert work(cache) == (0, 24, 0, 3)
    again = [file.stat().st_mtime_ns for file in (store.root / "records").rglob("*.json")]
    assert len(again) == len(entries)
    assert min(again) > max(entries)


def test_warnings_are_repeated_from_the_cache(models: Models, store: Store) -> None:
    same = models.folder / "1.safetensors"
    tasks = {"one": open_checkpoint(same), "same": open_checkpoint(same)}

    def told(cache: Cache | None) -> set[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            merge(models.base(), tasks, cache=cache)
        return {str(one.message) for one in caught if issubclass(one.category, TSVWarning)}

    fresh = told(None)
    assert any("tasks 'one', 'same' share directions" in message for message in fresh)
    assert told(Cache(store)) == fresh
    assert told(Cache(store)) == fresh


def test_two_at_once_share_the_work(models: Models, store: Store) -> None:
    caches = [Cache(store), Cache(store)]
    digests: list[str] = []

    def run(cache: Cache) -> None:
        digests.append(merge(models.base(), models.tasks(), cache=cache).digest)

    threads = [threading.Thread(target=run, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(digests)) == 1
    assert sum(work(cache)[1] for cache in caches) == 24
    assert sum(work(cache)[3] for cache in caches) == 3


def test_a_change_of_the_code_makes_all_anew(models: Models, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    merged(models, store)
    monkeypatch.setattr(tsvlib.factor_cache, "source_digest", lambda modules: "other")
    cache = Cache(store)
    FactorCache(cache)(TaskMatrix.of(torch.randn(9, 9), "a"), 3, "exact")
    monkeypatch.undo()
    FactorCache(cache)(TaskMatrix.of(torch.randn(9, 9), "a"), 3, "exact")
    assert work(cache) == (0, 2, 0, 0)


def test_a_new_method_file_leaves_the_others_results(models: Models, store: Store) -> None:
    from tsvlib.merged_cache import _modules_of
    from tsvlib.methods import get_method

    modules = _modules_of(get_method("tsv-m-eigh"))
    assert {"tsvlib.methods.tsv_merge_eigh", "tsvlib.methods.tsv_merge", "tsvlib.methods.low_rank_sum"} <= modules
    assert not {"tsvlib.methods.ties", "tsvlib.methods.iso_c"} & modules


def test_a_full_disk_stops_no_work(
    models: Models, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise CheckpointError("the store: the disk is full; nothing was written. Free some space and retry.")

    monkeypatch.setattr(Store, "take", full)
    assert merged(models, store) == (0, 24, 0, 3)
    assert "The work goes on without keeping this result." in caplog.text


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("TSV_STORE", "TSV_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_where_the_cache_is_by_default(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cache() is None
    asked = default_cache(True)
    assert asked is not None
    assert asked.store.root == elsewhere / ".tsv" / "store"
    (elsewhere / ".tsv" / "store").mkdir(parents=True)
    assert default_cache() is not None
    assert default_cache(False) is None
    monkeypatch.setenv("TSV_CACHE", "off")
    assert default_cache() is None
    assert default_cache(True) is not None
    monkeypatch.setenv("TSV_CACHE", "refresh")
    refreshed = default_cache()
    assert refreshed is not None
    assert refreshed.since > 0
    monkeypatch.setenv("TSV_CACHE", "no")
    with pytest.raises(SettingError) as caught:
        default_cache()
    assert str(caught.value) == "TSV_CACHE=no: choose use, refresh or off."
