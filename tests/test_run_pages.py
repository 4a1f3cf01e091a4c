"""A browser on the pages of a pipeline that has run: a run's artifacts, two runs compared, the flow run's results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import clean_environment, make_suite
from mlflow import MlflowClient
from servers import PrefectApi, mlflow_server, prefect_server

from benchmarks.browser import CHROMIUM, Browser, browser

pytestmark = [
    pytest.mark.services,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]

PARAMS = """
suite: suite.yaml
merge:
  average: {}
  task-arithmetic: {alpha: search}
  tsv-m: {}
compress:
  tsv-c: {}
"""
PICTURE = "[...document.images].some(image => image.naturalWidth > 300 && image.src.startsWith('{source}'))"


@dataclass
class Pages:
    """What the pipeline has left: in MLflow and in Prefect."""

    mlflow: str
    experiment: str
    run_ids: dict[str, str]
    """Candidate -> run in MLflow."""
    prefect: PrefectApi
    browser: Browser

    def open_artifact(self, candidate: str, path: str, *awaited: str) -> str:
        """All that a run's page shows with one artifact chosen."""
        link = f"{self.mlflow}/#/experiments/{self.experiment}/runs/{self.run_ids[candidate]}/artifacts/{path}"
        return self.browser.open(link, Path(path).name, *awaited)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    home = tmp_path_factory.mktemp("run-pages")
    make_suite(home)
    (home / "params.yaml").write_text(PARAMS)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    environment = clean_environment(home, PYTHONPATH=str(Path(__file__).parents[1]), MLFLOW_TRACKING_URI=uri)
    with ExitStack() as stack:
        api = stack.enter_context(prefect_server(home / "prefect", environment))
        command = [sys.executable, "-m", "flows.pipeline"]
        done = subprocess.run(
            command, cwd=home, env=environment | {"PREFECT_API_URL": api}, text=True, timeout=900,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("tiny")
        assert experiment
        run_ids = {str(run.info.run_name): run.info.run_id for run in client.search_runs([experiment.experiment_id])}
        mlflow = stack.enter_context(mlflow_server(home, environment, "--backend-store-uri", uri))
        opened = stack.enter_context(browser(home))
        yield Pages(mlflow, experiment.experiment_id, run_ids, PrefectApi(api), opened)


def test_the_artifacts_of_a_run_and_its_heat_map(pages: Pages) -> None:
    text = pages.open_artifact("tsv-m", "interference.png")
    for name in ("confusion", "accuracy_per_task.png", "radar.png", "storage_accuracy.png", "spectrum.png"):
        assert name in text
    for name in ("matrices.csv", "provenance.json", "suite"):
        assert name in text
    pages.browser.wait(PICTURE.format(source="blob:"))
    assert "alpha.png" not in text, "its alpha was given"


def test_an_archive_has_a_spectrum_and_no_interference(pages: Pages) -> None:
    assert "interference.png" not in pages.open_artifact("tsv-c", "spectrum.png")
    pages.browser.wait(PICTURE.format(source="blob:"))


def test_the_alpha_curve_where_alpha_was_searched(pages: Pages) -> None:
    text = pages.open_artifact("task-arithmetic", "alpha.png")
    assert "spectrum.png" not in text, "it keeps everything"
    pages.browser.wait(PICTURE.format(source="blob:"))


def test_the_confusion_of_classes_as_a_table(pages: Pages) -> None:
    text = pages.open_artifact("tsv-m", "confusion/side.csv", "left", "right")
    assert "Previewing the first 2 rows" in text, "a row for each class"


def test_the_figures_of_the_factors_stand_among_the_metrics(pages: Pages) -> None:
    pages.browser.open(
        f"{pages.mlflow}/#/experiments/{pages.experiment}/runs/{pages.run_ids['tsv-m']}", "sti", "energy"
    )


def test_two_runs_compared_by_parallel_coordinates(pages: Pages) -> None:
    chosen = ["tsv-m", "task-arithmetic"]
    ids = json.dumps([pages.run_ids[name] for name in chosen])
    link = f'{pages.mlflow}/#/compare-runs?runs={ids}&experiments=["{pages.experiment}"]'
    text = pages.browser.open(link, "Comparing 2 Runs from 1 Experiment", "Parallel Coordinates Plot", *chosen)
    for shown in ("Scatter Plot", "accuracy_normalized", "accuracy/side", "base_digest"):
        assert shown in text
    pages.browser.wait("document.querySelectorAll('.parcoords .axis-title').length === 3")
    titles = pages.browser.evaluate("[...document.querySelectorAll('.parcoords .axis-title')].map(e => e.textContent)")
    assert titles == ["alpha", "method", "accuracy"], "what differs, and the first metric"


def flow_run(pages: Pages) -> str:
    """The latest run of the flow that compares."""
    wanted = {"flows": {"name": {"any_": ["compare"]}}, "sort": "START_TIME_DESC", "limit": 1}
    return str(pages.prefect.post("/flow_runs/filter", wanted)[0]["id"])


def test_a_flow_run_shows_its_artifacts(pages: Pages) -> None:
    run = flow_run(pages)
    pages.browser.open(f"{pages.prefect.url.removesuffix('/api')}/runs/flow-run/{run}", "Completed", "Artifacts")
    pages.browser.evaluate(
        "[...document.querySelectorAll('*')].find(e => !e.childElementCount && e.innerText === 'Artifacts').click()"
    )
    pages.browser.wait("document.body.innerText.includes('comparison-plot')")
    text = pages.browser.text()
    assert "comparison-table" in text
    assert "Candidates of tiny" in text


def test_the_table_and_the_plot_of_a_flow_run(pages: Pages) -> None:
    artifacts = {one["key"]: one["id"] for one in pages.prefect.artifacts(flow_run(pages))}
    address = f"{pages.prefect.url.removesuffix('/api')}/artifacts/artifact"
    table = pages.browser.open(f"{address}/{artifacts['comparison']}", "6 Items", "normalised")
    for shown in ("average", "tsv-m", "task-arithmetic", "tsv-c", "fine-tuned", "zero-shot", "bright"):
        assert shown in table
    pages.browser.open(f"{address}/{artifacts['comparison-plot']}", "Candidates of tiny")
    pages.browser.wait(PICTURE.format(source="data:image/png"))
