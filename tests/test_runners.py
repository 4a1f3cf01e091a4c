"""One setting decides where tasks run; the result is the same everywhere, to the byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import yaml
from conftest import clean_environment, make_suite, write
from servers import dask_cluster, prefect_server, ray_cluster

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dsak://a:1", r"runner = 'dsak://a:1': there is no 'dsak'. Did you mean 'dask'\? There are: threads"),
        ("threads://4", "'threads' takes no place"),
        ("processes://many", "write the number of processes, as in processes://4"),
        ("processes://0", "write the number of processes, as in processes://4"),
    ],
)
def test_a_wrong_setting_is_told(setting: str, message: str) -> None:
    from flows.runners import RunnerError, make_runner

    with pytest.raises(RunnerError, match=message):
        make_runner(setting)


def test_the_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.runners import configured_runner, using_runner

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TSV_RUNNER", raising=False)
    assert configured_runner() == "threads"
    (tmp_path / "params.yaml").write_text("runner: processes://2\n")
    assert configured_runner() == "processes://2"
    with using_runner("dask"):
        assert configured_runner() == "dask"
        monkeypatch.setenv("TSV_RUNNER", "threads")
        assert configured_runner() == "threads"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.runners import RunnerError, make_runner

    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(RunnerError, match=r"Install it: pip install 'tsvlib\[ray\]'"):
        make_runner("ray://a:1")


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.place import Place

    with pytest.raises(FileNotFoundError, match="must see the same path as the flow"):
        Place(tmp_path / "missing", {"TSV_STORE": str(tmp_path)}).enter()


class Work:
    """A suite whose merge has several parts, and a small one that can be evaluated; a server; commands."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        make_suite(folder)
        self._make_large_suite()
        (folder / "params.yaml").write_text(
            "suite: suite.yaml\nmerge: {tsv-m: {}, ties: {density: 0.3}}\ncompress: {}\n"
        )
        home = folder / "home"
        home.mkdir()
        own = {"PREFECT_HOME": str(home / "prefect"), "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"}
        self.environment = clean_environment(home, PYTHONPATH=str(ROOT), **own)
        self.environment["PREFECT_API_URL"] = stack.enter_context(prefect_server(home, self.environment))

    def _make_large_suite(self, width: int = 512) -> None:
        random = torch.Generator().manual_seed(0)
        shapes = {f"visual.{layer}.fc.weight": (4 * width, width) for layer in range(8)}
        base = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
        (self.folder / "large").mkdir()
        write(self.folder / "large" / "base.safetensors", base)
        tasks = {}
        for task in ("a", "b", "c", "d"):
            tuned = {name: one + 0.01 * torch.randn(one.shape, generator=random) for name, one in base.items()}
            write(self.folder / "large" / f"{task}.safetensors", tuned)
            tasks[task] = {"checkpoint": f"{task}.safetensors", "data": task}
        suite = {"name": "large", "model": "model/", "base": "base.safetensors", "tasks": tasks}
        (self.folder / "large" / "suite.yaml").write_text(yaml.safe_dump(suite))

    def outcome(self, runner: str) -> dict[str, str]:
        """What merges of both suites, an evaluation and a sweep came to, with nothing in the store before."""
        place = self.folder / "stores" / runner.partition(":")[0]
        store = {"TSV_STORE": str(place), "PREFECT_LOCAL_STORAGE_PATH": str(place / "results"), "TSV_RUNNER": runner}
        script = self.folder / "outcome.py"
        script.write_text(OUTCOME)
        done = subprocess.run(
            [sys.executable, str(script)], cwd=self.folder, env=self.environment | store, text=True,
            capture_output=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.startswith("=")}


OUTCOME = """
import flows
from flows.evaluate import evaluate_suite
from flows.merge import merge_suite
from flows.params import MergeParameters
from flows.sweep import Grid, sweep


def main():
    print("=large", merge_suite("large/suite.yaml", "tsv-m").blob.digest)
    made = merge_suite("suite.yaml", "ties", MergeParameters(density=0.3))
    print("=ties", made.blob.digest)
    found = evaluate_suite("suite.yaml", {"ties": made.blob.path})
    print("=evaluated", repr({name: row["accuracy"] for name, row in found.items()}).replace(" ", ""))
    rows = sweep("suite.yaml", Grid(methods=["tsv-m", "average"], alphas=[0.5, 1.0]))
    print("=sweep", repr([(row.name, row.digest, row.validation, row.best, row.test) for row in rows]).replace(" ", ""))


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    with ExitStack() as stack:
        yield Work(tmp_path_factory.mktemp("work"), stack)


@pytest.fixture(scope="module")
def serial(work: Work) -> dict[str, str]:
    return work.outcome("threads")


@pytest.mark.services
@pytest.mark.slow
def test_processes_give_the_same(work: Work, serial: dict[str, str]) -> None:
    assert work.outcome("processes://2") == serial
    assert len(serial) == 4


@pytest.mark.services
@pytest.mark.slow
def test_dask_gives_the_same(work: Work, serial: dict[str, str]) -> None:
    with dask_cluster(work.folder / "dask", work.environment) as runner:
        assert work.outcome(runner) == serial
    assert not (work.folder / "dask" / "worker-0" / ".tsv").exists(), "workers keep nothing where they were started"


@pytest.mark.services
@pytest.mark.slow
def test_ray_gives_the_same(work: Work, serial: dict[str, str]) -> None:
    with ray_cluster(work.folder / "ray", work.environment) as runner:
        assert work.outcome(runner) == serial


@pytest.mark.services
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told(work: Work) -> None:
    for runner in ("dask://127.0.0.1:1", "ray://127.0.0.1:1"):
        environment = work.environment | {"TSV_RUNNER": runner, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}
        command = [sys.executable, "-m", "flows.merge", "tsv-m"]
        done = subprocess.run(command, cwd=work.folder, env=environment, text=True, capture_output=True, timeout=300)
        assert done.returncode == 2, done.stderr[-2000:]
        assert runner.partition(":")[0] in done.stderr
        assert "no cluster" in done.stderr
