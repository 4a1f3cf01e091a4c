"""Sweeps: a grid checked whole, each candidate computed once whatever kills the run, all of them tracked."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import make_suite
from test_flows import ROOT, Work

from flows.grid import load_grid, name_of
from tasks.run_record import RunRecord
from tsvlib.errors import TSVError
from tsvlib.predictions import read_predictions
from tsvlib.report import read_summary

GRID = """
suite: suite.yaml
methods: [tsv-m, task-arithmetic, average]
alphas: [0.5, 1.0, 1.5]
rank_fractions: [null, 0.25]
task_subsets: [[], [side, bright]]
"""
CANDIDATES = 2 * (3 * 2 + 3 + 3)
"""tsv-m takes a rank."""


@pytest.fixture(scope="module")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    make_suite(folder)
    return folder


def write(folder: Path, content: str) -> Path:
    file = folder / "grid.yaml"
    file.write_text(content)
    return file


def test_a_grid_is_every_combination_that_its_methods_take(suite_folder: Path) -> None:
    suite, grid = load_grid(write(suite_folder, GRID))
    assert Path(suite) == suite_folder / "suite.yaml", "a suite's path starts at the file's folder"
    names = [name_of(one) for one in grid.candidates()]
    assert len(names) == len(set(names)) == 12
    assert names[:4] == ["tsv-m alpha=0.5", "tsv-m alpha=1", "tsv-m alpha=1.5", "tsv-m alpha=0.5 rank_fraction=0.25"]
    assert names[-1] == "average alpha=1.5"


def test_the_example_can_be_run() -> None:
    suite, grid = load_grid(ROOT / "examples" / "sweep.yaml")
    assert suite == "lab-8"
    assert len(grid.candidates()) == 6 * 2 + 6


def test_what_is_left_out_has_defaults(suite_folder: Path) -> None:
    assert load_grid(write(suite_folder, "suite: suite.yaml"))[1].candidates() == [("tsv-m", {"alpha": 1.0})]
    assert load_grid(write(suite_folder, "suite: lab-8"))[0] == "lab-8"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"grid\.yaml: is no sweep .*write 'suite: NAME'"),
        ("- a", r"grid\.yaml: is no sweep"),
        ("suite: [", r"grid\.yaml: is no sweep"),
        ("methods: [tsv-m]", r"grid\.yaml: is no sweep \(KeyError\('suite'\)\)"),
        ("suite: nowhere.yaml", "suite 'nowhere.yaml': neither a file nor a packaged suite"),
        ("suite: suite.yaml\nmethods: [tvs-m]", "unknown method 'tvs-m'. Did you mean 'tsv-m'?"),
        ("suite: suite.yaml\nmethods: []", "methods: List should have at least 1 item"),
        ("suite: suite.yaml\nalphas: [high]", "alphas.0: Input should be a valid number"),
        ("suite: suite.yaml\nalphas: [.nan]", "alphas.0: Input should be a finite number"),
        ("suite: suite.yaml\nalphas: [1, 1.0]", "alphas: .*1.0 stands twice"),
        ("suite: suite.yaml\nalpha: [1]", "alpha: Extra inputs are not permitted"),
        ("suite: suite.yaml\nrank_fractions: [2]", "method 'tsv-m': rank_fraction = 2.0"),
        ("suite: suite.yaml\nmethods: [average]\nrank_fractions: [0.5]", "grid: .*none of average takes a rank"),
        ("suite: suite.yaml\ntask_subsets: [[sied]]", "suite 'tiny': no task 'sied'. Did you mean 'side'?"),
        ("suite: suite.yaml\ntask_subsets: [[side, side]]", "task_subsets: .* names a task twice"),
        ("suite: suite.yaml\ntask_subsets: [[side, bright], [bright, side]]", "task_subsets: .* stands twice"),
    ],
)
def test_a_wrong_grid_is_told_before_any_work(suite_folder: Path, content: str, message: str) -> None:
    with pytest.raises(TSVError, match=message) as told:
        load_grid(write(suite_folder, content))
    assert "Value error, Value error" not in str(told.value)


def test_a_grid_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TSVError, match="no such file"):
        load_grid(tmp_path / "none.yaml")


def test_the_same_candidate_in_another_sweep_is_another_run() -> None:
    def record(**tags: str) -> RunRecord:
        tags = {"candidate_digest": "d", **tags}
        return RunRecord(experiment="e", name="n", description="", tags=tags, parameters={}, metrics={"accuracy": 1.0})

    assert record(sweep="a").content == record(sweep="a", best="yes").content != record(sweep="b").content
    assert record().content == record(prefect_flow_run="other").content != record(sweep="a").content


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """A small suite, and a sweep over it that nothing disturbed."""
    work = Work(tmp_path_factory.mktemp("work"))
    write(work.folder, GRID)
    work.run("flows.server", "start")
    work.run("tsvlib", "sweep", "grid.yaml")
    yield work
    work.run("flows.server", "stop")


def rows(work: Work) -> list[dict]:
    return json.loads((work.folder / "sweeps" / "grid" / "results.json").read_text())


def tracked(work: Work) -> list[dict]:
    code = """
import json, mlflow
found = mlflow.search_runs(experiment_names=["tiny-sweeps"], output_format="list")
print(json.dumps([{"name": r.info.run_name, "status": r.info.status, "metrics": r.data.metrics,
                   "params": r.data.params, "tags": r.data.tags} for r in found]))
"""
    return json.loads(work.python(code).splitlines()[-1])


def forget(work: Work) -> None:
    """Nothing is known, nothing is made, nothing is tracked."""
    for name in ("records", "results", "blobs"):
        shutil.rmtree(work.folder / ".tsv" / "store" / name, ignore_errors=True)
    shutil.rmtree(work.folder / ".tsv" / "outbox", ignore_errors=True)
    for file in work.folder.glob("mlflow.db*"):
        file.unlink()


def finished(work: Work) -> Counter[str]:
    """Of the tasks whose results are kept: kind of the result -> how many."""
    kept = (work.folder / ".tsv" / "store" / "results").glob("*")
    contents = [file.read_text() for file in kept if file.is_file() and "partial" not in file.name]
    return Counter(found[1] for text in contents if (found := re.search(r"tasks\.models\.(\w+)", text)))


@pytest.mark.services
@pytest.mark.slow
def test_the_best_of_each_subset_is_marked_tested_and_tracked(work: Work) -> None:
    found = rows(work)
    assert len(found) == CANDIDATES
    for tasks in (["bright", "side", "stripe"], ["side", "bright"]):
        same = [row for row in found if row["tasks"] == tasks]
        assert len(same) == CANDIDATES / 2
        (best,) = [row for row in same if row["best"]]
        assert best["validation"] == max(row["validation"] for row in same)
        assert [row for row in same if row["test"] is not None] == [best]
    runs = tracked(work)
    assert {run["status"] for run in runs} == {"FINISHED"}
    (tag,) = {run["tags"]["sweep"] for run in runs}
    assert re.fullmatch(r"grid-[0-9a-f]{8}", tag)
    merged = [run for run in runs if run["tags"]["kind"] == "merged"]
    expected = {(" ".join(row["tasks"]), row["digest"]): row for row in found}
    assert len(merged) == CANDIDATES
    assert len(runs) == CANDIDATES + 4, "zero-shot and fine-tuned of each subset"
    for run in merged:
        row = expected[run["params"]["tasks"], run["tags"]["candidate_digest"]]
        assert run["params"]["method"] == row["method"]
        assert run["params"]["alpha"] == str(row["parameters"]["alpha"])
        assert run["metrics"]["accuracy_normalized"] == pytest.approx(row["validation"])
        assert (run["tags"].get("best") == "yes") == row["best"] == ("test/accuracy" in run["metrics"])
        assert run["tags"]["split"] == "validation"


@pytest.mark.services
@pytest.mark.slow
def test_the_summaries_are_read_by_tsv_compare(work: Work) -> None:
    folder = work.folder / "sweeps" / "grid"
    assert {file.name for file in folder.iterdir()} == {"results.json", "all-tasks", "side+bright"}
    summary = read_summary(folder / "side+bright" / "validation.json")
    assert len(summary) == CANDIDATES / 2 + 2
    assert "accuracy/stripe" not in summary["tsv-m alpha=1"]
    assert read_predictions(folder / "side+bright" / "test.parquet").split == "test"
    page = (folder / "all-tasks" / "validation.html").read_text()
    assert "Normalised accuracy against alpha" in page
    words = ["--filter", "params.method = 'tsv-m' and metrics.accuracy > 0", "--sort", "accuracy desc", "--json"]
    out = work.run("tsvlib", "compare", "sweeps/grid/all-tasks/validation.json", *words)
    accuracies = [row["accuracy"] for row in json.loads(out[out.index("{\n") :]).values()]
    assert len(accuracies) == 6
    assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.services
@pytest.mark.slow
def test_a_second_run_computes_nothing_and_tracks_nothing(work: Work) -> None:
    before = tracked(work)
    out = work.run("tsvlib", "sweep", "grid.yaml")
    assert f"{CANDIDATES} of {CANDIDATES} merged models" in out
    assert out.count("★") == 2
    assert tracked(work) == before


def after_merges(count: int) -> Callable[[Counter[str]], bool]:
    return lambda kept: kept["Made"] >= count


def after_evaluations(count: int) -> Callable[[Counter[str]], bool]:
    return lambda kept: kept["Answered"] >= count


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(after_merges(5), id="merging"),
        pytest.param(after_evaluations(4), id="evaluating"),
        pytest.param(after_evaluations(20), id="second subset"),
    ],
)
def test_a_killed_sweep_goes_on_and_computes_each_candidate_once(
    work: Work, moment: Callable[[Counter[str]], bool]
) -> None:
    expected = rows(work)
    forget(work)
    running = work.start("tsvlib", "sweep", "grid.yaml")
    deadline = time.monotonic() + 300
    while not moment(finished(work)) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    running.kill()
    running.communicate()
    kept = finished(work)
    assert moment(kept)
    assert kept["Made"] + kept["Answered"] < 2 * CANDIDATES, "it was killed in the middle"
    out = work.run("tsvlib", "sweep", "grid.yaml", "--json")
    assert json.loads(out[out.index("{\n") :])["candidates"] == expected == rows(work)
    time.sleep(3)  # the server records task runs in batches
    states = work.states()
    assert states["merge_checkpoints"].get("Cached", 0) == kept["Made"]
    assert states["merge_checkpoints"].get("Completed", 0) == CANDIDATES - kept["Made"]
    evaluations = sum((Counter(states[name]) for name in states if name.startswith("evaluate_")), Counter())
    assert evaluations["Cached"] >= kept["Answered"]
    assert set(evaluations) <= {"Cached", "Completed"}
    runs = tracked(work)
    assert len(runs) == CANDIDATES + 4
    assert {run["status"] for run in runs} == {"FINISHED"}


@pytest.mark.services
@pytest.mark.slow
def test_two_at_once_come_to_the_same_and_track_it_once(work: Work) -> None:
    expected, before = rows(work), len(tracked(work))
    for name in ("records", "results", "blobs"):
        shutil.rmtree(work.folder / ".tsv" / "store" / name)
    both = [work.start("tsvlib", "sweep", "grid.yaml") for _ in range(2)]
    for running in both:
        out, _ = running.communicate(timeout=600)
        assert running.returncode == 0, out
    assert rows(work) == expected
    assert len(tracked(work)) == before


@pytest.mark.services
@pytest.mark.slow
def test_without_mlflow_the_runs_wait(work: Work) -> None:
    before = len(tracked(work))
    write(work.folder, GRID.replace("alphas: [0.5, 1.0, 1.5]", "alphas: [0.5, 1.0]"))
    environment = {
        **work.environment,
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    command = [sys.executable, "-m", "tsvlib", "sweep", "grid.yaml"]
    done = subprocess.run(command, cwd=work.folder, env=environment, text=True, capture_output=True, timeout=600)
    write(work.folder, GRID)
    assert done.returncode == 0, done.stderr
    assert "send them with 'tsv track push'. Work goes on." in done.stderr
    assert done.stdout.count("★") == 2
    assert "tsv-m alpha=0.5 sent" in work.run("tsvlib", "track", "push")
    assert len(tracked(work)) == before + 2 * (2 * 2 + 2 + 2) + 4
