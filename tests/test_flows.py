"""The flows, against a real Prefect server and a real MLflow database, on a small suite."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import clean_environment, make_suite

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.services

PARAMS = """
suite: suite.yaml
merge:
  average: {{}}
  task-arithmetic: {{alpha: search}}
  tsv-m: {{alpha: {alpha}}}
compress:
  tsv-c: {{dtype: fp16}}
"""


class Work:
    """A folder with a small suite and a params.yaml, where flows run as commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_suite(folder)
        self.set_alpha(1.0)
        home = folder / "home"
        home.mkdir()
        self.environment = clean_environment(home, PYTHONPATH=str(ROOT))

    def set_alpha(self, alpha: float | str) -> None:
        (self.folder / "params.yaml").write_text(PARAMS.format(alpha=alpha))

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *words: str, status: int = 0) -> str:
        running = self.start(*words)
        out, _ = running.communicate(timeout=900)
        assert running.returncode == status, out
        return out

    def blobs(self) -> list[Path]:
        """All that the store holds."""
        return [file for file in (self.folder / ".tsv" / "store" / "blobs").rglob("*") if file.is_file()]

    def python(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", f"import flows\n{code}"], cwd=self.folder, env=self.environment, text=True,
            capture_output=True, check=True,
        )  # fmt: skip
        return done.stdout

    def states(self) -> dict[str, dict[str, int]]:
        """Of the latest flow run: task name -> state name -> count, as the server has them."""
        return json.loads(
            self.python(
                """
import json, asyncio
from collections import Counter
from flows.server import server_url
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect import get_client
from prefect.client.schemas.filters import TaskRunFilter, FlowRunFilter
async def main():
    async with get_client() as client:
        flow_runs = await client.read_flow_runs(sort="START_TIME_DESC", limit=20)
        top = [run for run in flow_runs if run.parent_task_run_id is None][0]
        found = {}
        children = [run for run in flow_runs if run.start_time >= top.start_time]
        for run in children:
            for task in await client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run.id]})):
                name = task.name.rsplit("-", 1)[0]
                found.setdefault(name, Counter())[task.state_name] += 1
        print(json.dumps(found))
with temporary_settings({PREFECT_API_URL: server_url()}):
    asyncio.run(main())
"""
            ).splitlines()[-1]
        )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    work = Work(tmp_path_factory.mktemp("work"))
    yield work
    work.run("flows.server", "stop")


def runs(work: Work) -> list[dict]:
    """All runs of the suite's experiment."""
    code = """
import json, mlflow
found = mlflow.search_runs(experiment_names=["tiny"], output_format="list")
print(json.dumps([{"name": r.info.run_name, "status": r.info.status, "id": r.info.run_id, "metrics": r.data.metrics,
                   "params": r.data.params, "tags": r.data.tags} for r in found]))
"""
    return json.loads(work.python(code).splitlines()[-1])


def test_the_whole_pipeline(work: Work) -> None:
    work.run("flows.pipeline")
    summary = json.loads((work.folder / "metrics" / "tiny" / "summary.json").read_text())
    assert set(summary) == {"zero-shot", "fine-tuned", "average", "task-arithmetic", "tsv-m", "tsv-c"}
    assert (work.folder / "plots" / "tiny" / "alpha.svg").exists()
    tracked = {run["name"]: run for run in runs(work)}
    assert set(tracked) == set(summary)
    for name, run in tracked.items():
        assert run["status"] == "FINISHED"
        assert run["metrics"]["accuracy_normalized"] == pytest.approx(summary[name]["accuracy_normalized"])
        assert run["metrics"]["accuracy/side"] == summary[name]["accuracy/side"]
        tags = {"method", "suite", "git_commit", "dvc_lock", "prefect_flow_run", "base_digest", "candidate_digest"}
        assert tags <= set(run["tags"])
    assert tracked["tsv-m"]["params"]["alpha"] == "1.0"
    named = {name: {"sti", "energy"} & set(row) for name, row in summary.items()}
    assert named == {name: set() for name in summary} | {"tsv-m": {"sti", "energy"}, "tsv-c": {"energy"}}
    assert tracked["tsv-m"]["metrics"]["sti"] == pytest.approx(summary["tsv-m"]["sti"])
    assert not list((work.folder / "home").iterdir()), "nothing may be written to the home directory"


def test_a_second_run_computes_nothing_and_tracks_nothing(work: Work) -> None:
    before = {run["id"] for run in runs(work)}
    work.run("flows.pipeline")
    time.sleep(3)  # the server records task runs in batches
    states = work.states()
    for task in ("factorise_task", "merge_checkpoints", "compress_checkpoints", "choose_parameters", "evaluate_file"):
        assert set(states[task]) == {"Cached"}, (task, states)
    assert {run["id"] for run in runs(work)} == before


def test_a_new_alpha_recomputes_one_merge_and_one_evaluation(work: Work) -> None:
    work.set_alpha(0.5)
    work.run("flows.pipeline")
    time.sleep(3)
    states = work.states()
    assert states["merge_checkpoints"]["Completed"] == 1
    assert states["evaluate_file"]["Completed"] == 1
    assert set(states["factorise_task"]) == {"Cached"}
    assert sum(run["name"] == "tsv-m" for run in runs(work)) == 2


def test_a_lost_result_is_made_again(work: Work) -> None:
    model = work.folder / "models" / "tiny" / "average.safetensors"
    content = model.read_bytes()
    for file in work.blobs():
        if file.read_bytes() == content:
            file.unlink()
    work.run("flows.merge", "average")
    assert model.read_bytes() == content


def test_mistakes_exit_with_2_and_one_message(work: Work) -> None:
    out = work.run("flows.merge", "ties", status=2)
    assert "params.yaml: merge has no 'ties'. There are: average, task-arithmetic, tsv-m." in out
    assert "Traceback" not in out
    work.set_alpha("high")
    out = work.run("flows.merge", "tsv-m", status=2)
    assert "params.yaml: merge.tsv-m.alpha" in out
    assert "Traceback" not in out
    work.set_alpha(1.0)
    checkpoint = work.folder / "side.safetensors"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-10])
    out = work.run("flows.merge", "tsv-m", status=2)
    assert "side.safetensors" in out
    assert "Traceback" not in out
    checkpoint.write_bytes(whole)


def test_killed_and_run_again(work: Work) -> None:
    out = work.folder / "models" / "tiny" / "tsv-c.safetensors"
    content = out.read_bytes()
    out.unlink()
    for blob in work.blobs():
        blob.unlink()
    running = work.start("flows.compress", "tsv-c")
    time.sleep(6)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not list(out.parent.glob(".*partial"))
    work.run("flows.compress", "tsv-c")
    assert out.read_bytes() == content
