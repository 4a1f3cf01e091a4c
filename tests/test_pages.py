"""MLflow's pages in a real browser: what a user sees of candidates, runs, artifacts and the registry."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import mlflow
import pytest
from conftest import clean_environment
from mlflow import MlflowClient

from benchmarks.browser import CHROMIUM, Browser, browser
from flows.server import free_port
from flows.ui import wait_for
from tasks.outbox import Outbox
from tasks.run_record import DataSet, RunRecord
from tasks.views import prepared_views

pytestmark = [
    pytest.mark.services,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@dataclass
class Pages:
    """A server of MLflow with three candidates, and a browser to look at it."""

    address: str
    run_ids: dict[str, str]
    browser: Browser

    def run_page(self, name: str, tab: str = "") -> str:
        """Link to a run's page."""
        return f"{self.address}/#/experiments/1/runs/{self.run_ids[name]}{tab}"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    home = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        uri = f"sqlite:///{home / 'mlflow.db'}"
        mlflow.set_tracking_uri(uri)
        outbox, note = Outbox(home / "outbox"), home / "note.json"
        note.write_text('{"made": "from base 43a2eca"}')
        for name, accuracy in [("average", 0.713), ("tsv-m", 0.822), ("task-arithmetic", 0.771)]:
            record = RunRecord(
                experiment="lab-8",
                name=name,
                description=f"{name} on suite lab-8",
                tags={"kind": "merged", "candidate_digest": name},
                parameters={"method": name, "alpha": 1.0},
                metrics=dict.fromkeys(["accuracy", "accuracy_normalized", "accuracy/digits", "bytes"], accuracy),
                datasets=[DataSet(name="digits", digest="0" * 16, source="data", split="test", images=800)],
            )
            outbox.put(record, {"provenance.json": note})
        run_ids = {sent.record.name: sent.run_id for sent in outbox.push()}
        client = MlflowClient()
        client.create_registered_model("lab-8")
        model = client.get_run(run_ids["tsv-m"]).outputs.model_outputs[0].model_id
        why = "tsv-m is better: 0.82"
        made = client.create_model_version("lab-8", f"models:/{model}", run_ids["tsv-m"], description=why)
        client.set_registered_model_alias("lab-8", "champion", made.version)
        address = f"http://127.0.0.1:{(port := free_port(5641))}"
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        server = subprocess.Popen(
            [*command, "--backend-store-uri", uri], cwd=home, env=clean_environment(home), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(f"{address}/health", server)
            with browser(home) as opened:
                yield Pages(address, run_ids, opened)
        finally:
            os.killpg(server.pid, signal.SIGTERM)  # its workers too
            server.wait(30)
            mlflow.set_tracking_uri(None)


def test_the_prepared_table_has_the_figures_in_front_and_the_best_first(pages: Pages) -> None:
    link = dict(prepared_views(pages.address))["lab-8, table"]
    text = pages.browser.open(link, "Sort: accuracy_normalized", "task-arithmetic")
    columns = text[text.index("Run Name") : text.index("tsv-m")]
    for shown in ("accuracy_normalized", "bytes", "alpha", "method", "kind"):
        assert shown in columns
    assert not re.search("Dataset|Source|Models|User", columns), "they would stand before the figures"
    assert text.index("tsv-m") < text.index("task-arithmetic") < text.index("average")


def test_the_charts_show_every_candidate(pages: Pages) -> None:
    link = dict(prepared_views(pages.address))["lab-8, charts"]
    text = pages.browser.open(link, "Add chart", "tsv-m", "task-arithmetic", "average")
    assert re.search(r"accuracy \( ?1 ?\)", text), "the tasks' accuracies are a group of charts"


def test_a_run_shows_description_data_model_and_figures(pages: Pages) -> None:
    shown = ("tsv-m on suite lab-8", "digits", "accuracy_normalized", "0.822", "alpha", "Registered")
    pages.browser.open(pages.run_page("tsv-m"), *shown)


def test_the_artifacts_are_listed(pages: Pages) -> None:
    pages.browser.open(pages.run_page("tsv-m", "/artifacts"), "provenance.json")


def test_the_registry_shows_the_champion_and_why(pages: Pages) -> None:
    pages.browser.open(f"{pages.address}/#/models/lab-8", "Version 1", "champion", "tsv-m is better")
