"""prefect.yaml on a real server with a real worker: triggers, refusals, pages, restarts, crashes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import psutil
import pytest
from conftest import clean_environment, make_suite
from prefect import Task
from prefect.states import Failed
from servers import PrefectApi, prefect_server, running, wait_for

from tasks import arrivals, evaluate, fetch, merge, parts, track
from tsvlib.errors import CheckpointError, UnreachableError

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.services, pytest.mark.slow]

PARAMS = """
suite: suite.yaml
merge:
  average: {}
  tsv-m: {alpha: 1.0}
compress: {}
"""


class Project:
    """A copy of the project's flows with a small suite, deployed on a server, and a worker for it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        make_suite(folder)
        (folder / "params.yaml").write_text(PARAMS)
        for name in ("prefect.yaml", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        for name in ("flows", "tasks"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        home = folder / "home"
        home.mkdir()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PREFECT_HOME": str(home / "prefect"), "PATH": path, "DO_NOT_TRACK": "true"}
        self.environment = clean_environment(home, PYTHONPATH=str(ROOT), **own)
        self.environment["PREFECT_API_URL"] = stack.enter_context(prefect_server(home, self.environment))
        self.api = PrefectApi(self.environment["PREFECT_API_URL"])
        self.run(sys.executable, "-m", "flows.deploy")
        self.worker = stack.enter_context(self.new_worker())

    def new_worker(self) -> AbstractContextManager[subprocess.Popen]:
        command = ["prefect", "worker", "start", "--pool", "local"]
        return running(command, self.folder, self.environment, "worker.log")

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, text=True, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def finished(self, deployment: str, **parameters: object) -> dict:
        run = self.api.finished(self.api.trigger(deployment, **parameters))
        time.sleep(3)  # the server records task runs in batches
        return run

    def latest(self, flow: str) -> list[dict]:
        """Runs of a flow, the latest first."""
        wanted = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC"}
        return self.api.post("/flow_runs/filter", wanted)

    def states(self, run: str) -> dict[str, set[str]]:
        """Task -> the states of its runs."""
        found: dict[str, set[str]] = {}
        for task in self.api.task_runs(run):
            found.setdefault(task["name"].rpartition("-")[0], set()).add(task["state_name"])
        return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with ExitStack() as stack:
        yield Project(tmp_path_factory.mktemp("project"), stack)


def test_everything_is_deployed(project: Project) -> None:
    nightly = project.api.get("/deployments/name/pipeline/nightly")
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    wait_for(lambda: project.api.runs_of("pipeline/nightly"), 120)  # the schedule has made runs
    watch = project.api.get("/deployments/name/watch/new-checkpoint")
    assert watch["schedules"][0]["schedule"]["interval"] == 300
    choices = project.api.get("/deployments/name/merge/merge")["parameter_openapi_schema"]
    assert "tsv-m" in choices["properties"]["method"]["enum"]
    assert "density" in choices["definitions"]["MergeParameters"]["properties"]
    assert project.api.get("/concurrency_limits/tag/accelerator")["concurrency_limit"] == 1
    project.run(sys.executable, "-m", "flows.deploy")  # again: changes nothing, fails at nothing


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"method": "tvs-m"}, ["method", "tvs-m", "tsv-m"]),
        ({"parameters": {"densty": 0.3}}, ["parameters", "densty"]),
        ({"parameters": {"alpha": "low"}}, ["parameters.alpha"]),
        ({"device": "tpu"}, ["device", "tpu"]),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_before_a_run_is_made(
    project: Project, parameters: dict, named: list[str]
) -> None:
    before = len(project.api.runs_of("merge/merge"))
    with pytest.raises(urllib.error.HTTPError) as refused:
        project.api.trigger("merge/merge", **{"suite": "suite.yaml", **parameters})
    answer = refused.value.read().decode()
    assert all(word in answer for word in named), answer
    assert len(project.api.runs_of("merge/merge")) == before


def test_a_parameter_that_the_method_does_not_take_fails_the_run_with_its_name(project: Project) -> None:
    run = project.finished("merge/merge", suite="suite.yaml", method="average", parameters={"density": 0.3})
    assert run["state"]["type"] == "FAILED"
    assert "method 'average' takes no parameter 'density'" in run["state"]["message"]


def test_the_page_of_a_sweep_tells_its_result_and_a_second_one_computes_nothing(project: Project) -> None:
    grid = {"methods": ["tsv-m", "average"], "alphas": [0.5, 1.0], "task_subsets": [[], ["side", "bright"]]}
    first = project.finished("sweep/sweep", suite="suite.yaml", grid=grid)
    assert first["state"]["type"] == "COMPLETED", first["state"]
    artifacts = {one["key"] or one["type"]: one for one in project.api.artifacts(first["id"])}
    assert {"sweep", "sweep-plot", "progress"} <= set(artifacts)
    rows = json.loads(artifacts["sweep"]["data"])
    assert len(rows) == 8
    assert [row["tasks"] for row in rows if row["best"]] == [3, 2]
    assert "data:image/png;base64," in artifacts["sweep-plot"]["data"]
    for number in (3, 2):
        same = [row for row in rows if row["tasks"] == number]
        assert next(row for row in same if row["best"])["validation (%)"] == max(row["validation (%)"] for row in same)
    second = project.finished("sweep/sweep", suite="suite.yaml", grid=grid)
    states = project.states(second["id"])
    for task in ("merge_checkpoints", "evaluate_file", "evaluate_fine_tuned", "factorise_task"):
        assert states[task] == {"Cached"}, states


def test_a_new_checkpoint_starts_one_merge_and_a_growing_one_none(project: Project) -> None:
    folder = project.folder / "arrivals"
    folder.mkdir()
    shutil.copy(project.folder / "base.safetensors", folder)

    def look(settle: float = 0) -> int:
        """Runs of the merge that there are after one more look."""
        run = project.finished(
            "watch/new-checkpoint", base="arrivals/base.safetensors", folder="arrivals", settle_seconds=settle
        )
        assert run["state"]["type"] == "COMPLETED", run["state"]
        return len(project.api.runs_of("merge-checkpoints/merge-checkpoints"))

    assert look() == 0
    whole = (project.folder / "side.safetensors").read_bytes()
    (folder / "side.safetensors").write_bytes(whole[: len(whole) // 2])
    assert look() == 0, "half a file"
    (folder / "side.safetensors").write_bytes(whole)
    assert look(settle=600) == 0, "whole by its header, but changed a moment ago"
    assert look() == 1
    assert look() == 1, "the same again"
    (folder / "copy.safetensors").write_bytes(whole)
    assert look() == 1, "the same under another name"
    shutil.copy(project.folder / "bright.safetensors", folder)
    assert look() == 2
    for run in project.api.runs_of("merge-checkpoints/merge-checkpoints"):
        assert project.api.finished(run["id"])["state"]["type"] == "COMPLETED"
    assert (project.folder / "models" / "arrivals" / "tsv-m.safetensors").exists()


def test_a_failed_run_goes_on_from_the_task_that_failed(project: Project) -> None:
    in_the_way = project.folder / "plots"
    in_the_way.write_text("a file, where the report wants a folder")
    run = project.finished("pipeline/nightly")
    assert run["state"]["type"] == "FAILED", run["state"]
    in_the_way.unlink()
    project.run("prefect", "flow-run", "retry", run["id"])
    wait_for(lambda: project.api.state(run["id"]) == "COMPLETED", 300, 1)
    assert project.api.get(f"/flow_runs/{run['id']}")["run_count"] == 2
    time.sleep(3)
    for run in project.latest("merge")[:2]:
        assert project.states(run["id"])["merge_checkpoints"] == {"Cached"}


def test_tasks_that_talk_to_others_are_tried_again_and_those_that_compute_are_not() -> None:
    talking = {fetch.fetch_checkpoint, arrivals.find_arrivals, track.track_candidates}
    for module in (fetch, arrivals, track, merge, parts, evaluate):
        for task in vars(module).values():
            if isinstance(task, Task):
                assert task.retries == (3 if task in talking else 0), task.name
    retried = talking.pop().retry_condition_fn
    assert retried(None, None, Failed(data=UnreachableError("does not answer")))
    assert retried(None, None, Failed(data=ConnectionError("reset")))
    assert not retried(None, None, Failed(data=CheckpointError("no such file")))


LIMITED = """
import sys, time
import flows
from prefect import flow, task
from flows.runners import on_device

@task
def hold(): time.sleep(4)

@flow(name="limited")
def limited(): on_device(hold, sys.argv[1])()

limited()
"""


def test_one_task_at_a_time_on_the_accelerator(project: Project) -> None:
    environment = {**project.environment, "PREFECT_TASKS_TAG_CONCURRENCY_SLOT_WAIT_SECONDS": "1"}
    together = [
        subprocess.Popen([sys.executable, "-c", LIMITED, "cuda"], cwd=project.folder, env=environment) for _ in range(2)
    ]
    assert [one.wait(timeout=200) for one in together] == [0, 0]
    time.sleep(3)
    tasks = [task for run in project.latest("limited") for task in project.api.task_runs(run["id"])]
    spans = sorted((task["start_time"], task["end_time"]) for task in tasks)
    assert len(spans) == 2
    assert spans[0][1] <= spans[1][0], spans


def test_a_killed_worker_and_run_are_seen_as_crashed_and_the_run_completes_afterwards(project: Project) -> None:
    (project.folder / "params.yaml").write_text(PARAMS.replace("alpha: 1.0", "alpha: 0.7"))
    run = project.api.trigger("pipeline/nightly")
    wait_for(lambda: project.api.state(run) == "RUNNING", 120, 0.2)
    wait_for(lambda: heartbeat_of(project, run), 60, 0.2)
    worker = psutil.Process(project.worker.pid)
    for process in [worker, *worker.children(recursive=True)]:
        process.send_signal(signal.SIGKILL)
    assert project.api.state(run) == "RUNNING", "nobody was left to tell"
    crashed = wait_for(lambda: project.api.state(run) == "CRASHED", 240, 1)
    assert crashed
    with project.new_worker():
        project.run("prefect", "flow-run", "retry", run)
        wait_for(lambda: project.api.state(run) == "COMPLETED", 300, 1)
    summary = json.loads((project.folder / "metrics" / "tiny" / "summary.json").read_text())
    assert set(summary) == {"zero-shot", "fine-tuned", "average", "tsv-m"}


def heartbeat_of(project: Project, run: str) -> bool:
    events = {
        "filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    }
    return project.api.post("/events/filter", events)["total"] > 0
