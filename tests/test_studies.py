"""Studies: each table has the rows it should, and its figures are those of ``tsv merge`` and ``tsv evaluate``."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from conftest import write
from test_cli import Tsv

from tsvlib.cache import Cache
from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.decoded import DecodedImages
from tsvlib.evaluate import Evaluator
from tsvlib.images import LabelledImages
from tsvlib.layers import place_of
from tsvlib.masked import density_within, magnitude_masked, tall_masked
from tsvlib.masks import magnitude_mask, tall_masks
from tsvlib.store import Store
from tsvlib.studies import Subject, get_study, study_names
from tsvlib.suite import Suite

NAMES = ["ablation", "alpha", "interference", "pairs", "rank", "storage", "tasks"]


@pytest.fixture
def tsv(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tsv:
    """The command, with a store of the test's own."""
    monkeypatch.setenv("TSV_STORE", str(tmp_path / "store"))
    return Tsv(capsys, monkeypatch)


@pytest.fixture
def file(tuned: Suite) -> Path:
    """The suite's file."""
    return tuned.folder / "suite.yaml"


def rows_of(tsv: Tsv, name: str, file: Path, *words: object) -> list[dict[str, Any]]:
    status, out, err = tsv("study", name, "--suite", file, "--json", *words)
    assert status == 0, err
    return json.loads(out)["rows"]


def evaluated(tsv: Tsv, suite: Path, made: Path, split: str = "test") -> dict[str, float]:
    """Metrics of a file by ``tsv evaluate``."""
    words = ("evaluate", "--suite", suite, "--split", split, "--candidate", f"one={made}", "--json")
    status, out, err = tsv(*words)
    assert status == 0, err
    return json.loads(out)["one"]


def assert_same(rows: list[dict[str, Any]], metrics: dict[str, float], tasks: list[str]) -> None:
    """The rows of one candidate are the metrics of the same candidate, to the last digit."""
    assert [row["task"] for row in rows] == [*tasks, "mean"]
    for row in rows:
        end = "" if row["task"] == "mean" else f"/{row['task']}"
        assert row["accuracy"] == metrics[f"accuracy{end}"]
        assert row["accuracy_normalized"] == metrics[f"accuracy_normalized{end}"]
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert rows[-1]["accuracy_low"] == metrics["accuracy_low"]
    assert rows[-1]["accuracy_normalized_high"] == metrics["accuracy_normalized_high"]


def test_studies_are_listed_with_what_they_repeat(tsv: Tsv) -> None:
    assert study_names() == NAMES
    status, out, _ = tsv("study")
    assert status == 0
    for name in NAMES:
        assert get_study(name).question.endswith("?")
        assert f"{get_study(name).question}\n{'':12}  {get_study(name).paper}" in out
    assert [one["name"] for one in json.loads(tsv("study", "--json")[1])["studies"]] == NAMES


def test_alpha(tsv: Tsv, tuned: Suite, file: Path, tmp_path: Path) -> None:
    rows = rows_of(tsv, "alpha", file, "--alpha", 1, "--alpha", 0.4, "--method", "tsv-m", "--method", "average")
    assert [(row["method"], row["alpha"]) for row in rows if row["task"] == "mean"] == [
        ("tsv-m", 0.4), ("tsv-m", 1.0), ("average", 0.4), ("average", 1.0),
    ]  # fmt: skip
    merged = tmp_path / "m.safetensors"
    assert tsv("merge", "--suite", file, "--set", "alpha=0.4", "--out", merged)[0] == 0
    here = [row for row in rows if (row["method"], row["alpha"]) == ("tsv-m", 0.4)]
    assert_same(here, evaluated(tsv, file, merged), list(tuned.tasks))


def test_rank(tsv: Tsv, tuned: Suite, file: Path, tmp_path: Path) -> None:
    rows = rows_of(tsv, "rank", file, "--rank-fraction", 0.1, "--rank-fraction", 1, "--split", "validation")
    assert len(rows) == 2 * 2 * (len(tuned.tasks) + 1)
    for method, verb in (("tsv-m", "merge"), ("tsv-c", "compress")):
        made = tmp_path / f"{verb}.safetensors"
        asked = ["--set", "rank_fraction=0.1"] if verb == "merge" else ["--rank-fraction", "0.1"]
        assert tsv(verb, "--suite", file, *asked, "--out", made)[0] == 0
        here = [row for row in rows if (row["method"], row["rank_fraction"]) == (method, 0.1)]
        assert_same(here, evaluated(tsv, file, made, "validation"), list(tuned.tasks))
    whole = [row for row in rows if (row["method"], row["rank_fraction"], row["task"]) == ("tsv-c", 1.0, "mean")]
    assert whole[0]["accuracy_normalized"] == pytest.approx(1, abs=0.02)


def test_ranks_by_default_hold_the_papers(tsv: Tsv, file: Path) -> None:
    rows = rows_of(tsv, "rank", file, "--method", "low-rank-sum")
    assert sorted({row["rank_fraction"] for row in rows}) == sorted([*(2.0**-step for step in range(7)), 1 / 3])


def test_ablation(tsv: Tsv, tuned: Suite, file: Path, tmp_path: Path) -> None:
    rows = rows_of(tsv, "ablation", file)
    means = [row for row in rows if row["task"] == "mean"]
    steps = [
        ("neither", "task-arithmetic", False, False),
        ("low-rank", "low-rank-sum", True, False),
        ("orthogonal", "orthogonal-sum", False, True),
        ("both", "tsv-m", True, True),
    ]
    found = [(row["variant"], row["method"], row["low_rank"], row["orthogonal"]) for row in means]
    assert found == steps * 2
    assert [row["alpha_chosen"] for row in means] == [1.0] * 4 + ["search"] * 4
    assert {row["alpha"] for row in means[:4]} == {1.0}
    merged = tmp_path / "m.safetensors"
    words = ("merge", "--suite", file, "--method", "orthogonal-sum", "--set", "alpha=search", "--out", merged, "--json")
    parameters = json.loads(tsv(*words)[1])["parameters"]
    here = [row for row in rows if (row["method"], row["alpha_chosen"]) == ("orthogonal-sum", "search")]
    assert here[0]["alpha"] == parameters["alpha"]
    assert_same(here, evaluated(tsv, file, merged), list(tuned.tasks))


def test_interference_is_that_of_its_own_verb(tsv: Tsv, file: Path) -> None:
    rows = rows_of(tsv, "interference", file, "--norm", "frobenius", "--rank-fraction", 0.2)
    expected = json.loads(
        tsv("interference", "--suite", file, "--norm", "frobenius", "--rank-fraction", 0.2, "--json")[1]
    )["interference"]
    assert [(row["parameter"], row["rank"], row["norm"]) for row in rows] == [
        (one["parameter"], one["rank"], "frobenius") for one in expected
    ]
    assert [row["sti"] for row in rows] == pytest.approx([one["sti"] for one in expected])
    places = {row["parameter"]: (row["layer"], row["kind"]) for row in rows}
    assert places["visual.transformer.resblocks.1.mlp.c_fc.weight"] == (1, "mlp.c_fc")
    assert places["visual.proj"] == (None, "visual.proj")


def test_pairs_are_those_of_interference(tsv: Tsv, tuned: Suite, file: Path) -> None:
    rows = rows_of(tsv, "pairs", file)
    expected = json.loads(tsv("interference", "--suite", file, "--pairs", "--json")[1])["pairs"]
    assert len(rows) == math.comb(len(tuned.tasks), 2)
    for row in rows:
        assert row["sti"] == pytest.approx(expected[row["task"]][row["other"]])


def test_storage(tsv: Tsv, tuned: Suite, file: Path, tmp_path: Path) -> None:
    rows = rows_of(tsv, "storage", file, "--rank-fraction", 0.25)
    means = {row["method"]: row for row in rows if row["task"] == "mean"}
    assert list(means) == ["fine-tuned", "zero-shot", "tsv-c", "magnitude-mask", "tall-mask", "tsv-m"]
    archive = tmp_path / "a.safetensors"
    assert tsv("compress", "--suite", file, "--rank-fraction", 0.25, "--out", archive)[0] == 0
    metrics = evaluated(tsv, file, archive)
    assert_same([row for row in rows if row["method"] == "tsv-c"], metrics, list(tuned.tasks))
    assert means["tsv-c"]["bytes"] == archive.stat().st_size
    assert means["tsv-c"]["bytes_ratio"] == pytest.approx(metrics["bytes_ratio"])
    assert means["tsv-c"]["total_ratio"] == pytest.approx(metrics["bytes_ratio"] + 1), "the base is needed too"
    assert means["magnitude-mask"]["bytes"] == pytest.approx(archive.stat().st_size, rel=0.001)
    assert means["fine-tuned"]["total_ratio"] == pytest.approx(3, rel=0.01)
    assert means["tsv-m"]["total_ratio"] == pytest.approx(1, rel=0.1)
    base, tasks = opened(tuned)
    recovered = {task: plain_tall_mask(base, tasks, task) for task in tasks}
    expected = Evaluator(tuned, "test").accuracies(recovered.__getitem__)
    here = {row["task"]: row["accuracy"] for row in rows if row["method"] == "tall-mask"}
    assert here == expected | {"mean": pytest.approx(fmean(expected.values()))}


def opened(suite: Suite) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    return open_checkpoint(suite.base_uri), {task: open_checkpoint(uri) for task, uri in suite.checkpoints.items()}


def plain_tall_mask(base: Checkpoint, tasks: dict[str, Checkpoint], task: str) -> dict[str, torch.Tensor]:
    """base + mask · Σ τ, in 16 bits, over the whole model in memory."""
    found = {}
    for key in base:
        masks, total = tall_masks([one[key] - base[key] for one in tasks.values()])
        found[key] = base[key] + total.half().float() * masks[list(tasks).index(task)]
    return found


def test_masked_models_and_their_bytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(7, 5, generator=generator), "b": torch.randn(13, generator=generator)}
    base = write(tmp_path / "base", {**tensors, "steps": torch.tensor([3])})
    tasks = {}
    for name in ("one", "two"):
        moved = {key: tensor + torch.randn(tensor.shape, generator=generator) for key, tensor in tensors.items()}
        tasks[name] = write(tmp_path / name, {**moved, "steps": torch.tensor([4])})
    tall = tall_masked(base, tasks)
    assert tall.nbytes == 2 * (35 + 13) + 2 * (5 + 2), "16 bits a value, and a bit a value and task"
    expected = plain_tall_mask(base, tasks, "two")
    assert torch.equal(tall.extract("two")["a"], expected["a"])
    assert tall.extract("two")["steps"] == 3, "what cannot be fine-tuned is the base's"
    for nbytes in (10, 40, 100):
        density = density_within(base, tasks, nbytes)
        kept = magnitude_masked(base, tasks, density)
        assert kept.nbytes == pytest.approx(nbytes, abs=1)
        delta = tasks["one"]["b"] - base["b"]
        assert torch.equal(
            kept.extract("one")["b"], base["b"] + (delta * magnitude_mask(delta, density)).half().float()
        )


def test_tasks(tsv: Tsv, tuned: Suite, file: Path, tmp_path: Path) -> None:
    rows = rows_of(tsv, "tasks", file)
    sizes = [(row["tasks"], row["method"]) for row in rows if row["task"] == "mean"]
    methods = ["zero-shot", "fine-tuned", "average", "task-arithmetic,alpha=search", "tsv-m"]
    assert sizes == [(size, method) for size in (2, 3) for method in methods]
    two = tmp_path / "two.yaml"
    content = yaml.safe_load(file.read_text())
    names = list(content["tasks"])[:2]
    content["tasks"] = {
        name: {key: str(tuned.path(value)) for key, value in content["tasks"][name].items()} for name in names
    }
    content |= {"model": f"{tuned.path(tuned.model)}/", "base": tuned.base_uri}
    two.write_text(yaml.safe_dump(content))
    for method, words in (("tsv-m", []), ("task-arithmetic,alpha=search", ["--set", "alpha=search"])):
        merged = tmp_path / f"{method}.safetensors"
        asked = ("merge", "--suite", two, "--method", method.partition(",")[0], *words, "--out", merged, "--json")
        parameters = json.loads(tsv(*asked)[1])["parameters"]
        here = [row for row in rows if (row["tasks"], row["method"]) == (2, method)]
        assert_same(here, evaluated(tsv, two, merged), names)
        if words:
            assert {row["parameters"] for row in here} == {f"alpha={parameters['alpha']:g}"}


def test_sizes_and_methods_are_chosen(tsv: Tsv, file: Path) -> None:
    rows = rows_of(tsv, "tasks", file, "--size", 1, "--method", "tsv-c", "--method", "ties,density=0.5")
    methods = ["zero-shot", "fine-tuned", "tsv-c", "ties,density=0.5"]
    assert [(row["tasks"], row["method"]) for row in rows if row["task"] == "mean"] == [(1, one) for one in methods]


def test_files(tsv: Tsv, file: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        words = ("study", "pairs", "--suite", file, "--out", tmp_path / folder, "--format", "svg", "--format", "png")
        status, out, _ = tsv(*words)
        assert status == 0
        assert sorted(one.name for one in (tmp_path / folder).iterdir()) == ["pairs.csv", "pairs.png", "pairs.svg"]
    for one in (tmp_path / "one").iterdir():
        assert one.read_bytes() == (tmp_path / "two" / one.name).read_bytes(), "the same study gives the same files"
    assert "pairs: Which tasks interfere with which?" in out
    with (tmp_path / "one" / "pairs.csv").open() as opened:
        assert [row["task"] for row in csv.DictReader(opened)] == ["bright", "bright", "side"]
    status, _, err = tsv("study", "pairs", "--suite", file, "--out", tmp_path / "one")
    assert (status, "pairs.csv: exists already" in err) == (2, True)
    assert tsv("study", "pairs", "--suite", file, "--out", tmp_path / "one", "--force", "--quiet") == (0, "", "")


@pytest.mark.slow
def test_all_of_them_and_their_page(tsv: Tsv, file: Path, tmp_path: Path) -> None:
    status, out, _ = tsv("study", "all", "--suite", file, "--out", tmp_path / "out", "--json")
    assert status == 0
    assert [one["study"] for one in json.loads(out)["studies"]] == NAMES
    expected = {"studies.md", *(f"{name}.{suffix}" for name in NAMES for suffix in ("csv", "svg"))}
    assert {one.name for one in (tmp_path / "out").iterdir()} == expected
    page = (tmp_path / "out" / "studies.md").read_text()
    for one in json.loads(out)["studies"]:
        assert f"![{one['study']}]({one['study']}.svg)" in page
        assert len(pd.read_csv(tmp_path / "out" / f"{one['study']}.csv")) == len(one["rows"])


def test_nothing_is_left_behind_without_a_store(
    tsv: Tsv,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TSV_STORE")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    rows_of(tsv, "storage", file, "--rank-fraction", 0.25)
    assert not list(work.iterdir())
    assert not list((tmp_path / "temporary").iterdir())


def test_factors_are_computed_once_and_images_decoded_once(
    tuned: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = 0
    read = LabelledImages.read

    def counted(images: LabelledImages, rows: torch.Tensor, preprocess: Any) -> Any:
        nonlocal decoded
        decoded += len(rows)
        return read(images, rows, preprocess)

    monkeypatch.setattr(LabelledImages, "read", counted)
    monkeypatch.setattr(DecodedImages, "_everything_fits", True)
    cache = Cache(Store(tmp_path / "kept"))
    subject = Subject(tuned, cache, tmp_path)
    alpha = get_study("alpha")
    alpha.function(subject, alpha.parse({"method": ["tsv-m"], "alpha": [0.2, 0.4, 0.6, 0.8]}))
    images = sum(len(tuned.images(task, split)) for task in tuned.tasks for split in ("test", "validation"))
    assert decoded == images, "test images for six candidates, validation images for the fine-tuned ones"
    work = cache.work()
    assert work["factors"] == {"computed": work["merged"]["computed"] * len(tuned.tasks), "reused": 0}
    rank = get_study("rank")
    rank.function(subject, rank.parse({"method": ["tsv-m"], "rank_fraction": [1 / 3]}))
    assert cache.work()["factors"]["computed"] == work["factors"]["computed"], "those of the paper's rank"


@pytest.mark.parametrize(
    ("key", "layer", "kind"),
    [
        ("visual.transformer.resblocks.11.attn.in_proj_weight", 11, "attn.in_proj"),
        ("visual.transformer.resblocks.0.attn.in_proj_weight[2]", 0, "attn.in_proj[2]"),
        ("vision_model.encoder.layers.3.self_attn.q_proj.weight", 3, "self_attn.q_proj"),
        ("visual.trunk.blocks.5.mlp.fc1.weight", 5, "mlp.fc1"),
        ("transformer.resblocks.2.mlp.c_fc.weight", 2, "text mlp.c_fc"),
        ("visual.positional_embedding", None, "visual.positional_embedding"),
        ("visual.conv1.weight", None, "visual.conv1"),
    ],
)
def test_places(key: str, layer: int | None, kind: str) -> None:
    assert place_of(key) == (layer, kind)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnak"], "unknown study 'rnak'. Did you mean 'rank'? Studies: ablation, alpha, interference, pairs, rank, "),
        (["pairs", "--alpha", "1"], "study 'pairs' takes no alpha; it takes: rank_fraction, norm."),
        (["all", "--size", "2"], "study 'all' takes no size: each study has its own; run them one by one."),
        (["rank", "--rank-fraction", "1.5"], "rank_fraction = 1.5: a matrix of shape (m, n) has min(m, n) singular"),
        (["rank", "--rank-fraction", "0"], "give the share of them to keep, above 0 and at most 1."),
        (["storage", "--rank-fraction", "-1"], "rank_fraction = -1: a matrix of shape (m, n)"),
        (["interference", "--rank-fraction", "2"], "rank_fraction = 2: a matrix of shape (m, n)"),
        (["rank", "--method", "average"], "method 'average': takes no rank_fraction, which this study varies"),
        (["rank", "--method", "tsv-c,rank_fraction=7"], "method 'tsv-c': rank_fraction = 7: "),
        (["alpha", "--method", "tsv-m,alpha=1"], "method 'tsv-m,alpha=1': this study varies alpha itself"),
        (["alpha", "--method", "tvs-m"], "unknown method 'tvs-m'. Did you mean 'tsv-m'?"),
        (["alpha", "--method", "tsv-m", "--method", "tsv-m"], "method 'tsv-m': given twice; name each once."),
        (["tasks", "--method", "ties,density"], "method 'ties,density': write it as NAME or NAME,PARAMETER=VALUE,…."),
        (["tasks", "--method", "ties,beta=1"], "method 'ties' takes no parameter 'beta'"),
        (["tasks", "--size", "4"], "size = 4: suite 'tiny' has 3 tasks; give numbers from 1 to 3."),
        (["alpha", "--alpha", "high"], "study 'alpha': alpha = 'high': Input should be a valid number"),
    ],
)
def test_mistakes_exit_with_2_and_one_message(
    tsv: Tsv,
    file: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    status, out, err = tsv("study", *words, "--suite", file, "--out", tmp_path / "out")
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert not out
    assert not (tmp_path / "out").exists()


def test_a_suite_must_be_named(tsv: Tsv) -> None:
    status, _, err = tsv("study", "rank")
    assert (status, err) == (2, "error: study 'rank': give --suite NAME_OR_FILE, what to study.\n")


def test_a_suite_without_images_has_only_what_needs_none(
    tsv: Tsv,
    tuned: Suite,
    file: Path,
    tmp_path: Path,
) -> None:
    content = yaml.safe_load(file.read_text())
    content["tasks"] = {
        name: {"checkpoint": uri, "data": str(tmp_path / "absent"), "classes": tuned.classes(name)}
        for name, uri in tuned.checkpoints.items()
    }
    content |= {"model": f"{tuned.path(tuned.model)}/", "base": tuned.base_uri}
    bare = tmp_path / "bare.yaml"
    bare.write_text(yaml.safe_dump(content))
    status, _, err = tsv("study", "rank", "--suite", bare, "--out", tmp_path / "out")
    assert status == 2
    assert str(tmp_path / "absent") in err
    assert not (tmp_path / "out").exists()
    assert len(rows_of(tsv, "pairs", bare)) == 3


def test_one_task_has_no_pairs(tsv: Tsv, file: Path, tuned: Suite, tmp_path: Path) -> None:
    content = yaml.safe_load(file.read_text())
    content["tasks"] = {"side": {"checkpoint": tuned.checkpoints["side"], "data": str(tuned.path("side"))}}
    content |= {"model": f"{tuned.path(tuned.model)}/", "base": tuned.base_uri}
    (tmp_path / "single.yaml").write_text(yaml.safe_dump(content))
    status, _, err = tsv("study", "pairs", "--suite", tmp_path / "single.yaml")
    assert (status, "suite 'tiny' has one task; it takes two to interfere" in err) == (2, True)
