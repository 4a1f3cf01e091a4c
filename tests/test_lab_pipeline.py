"""``dvc repro`` of lab-8 as its user runs it: the paper's orderings, nothing done twice, one change re-runs its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import clean_environment

ROOT = Path(__file__).parents[1]
MARGIN = 0.05  # on 6400 test images a mean has a standard error of about 0.005
pytestmark = [pytest.mark.slow, pytest.mark.services]


class Project:
    """A copy of the project without anything that a run has made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file() and not name.startswith(("metrics/", "dvc.lock")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        home = folder.parent / "home"
        home.mkdir()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = clean_environment(home, PATH=path, PYTHONPATH=str(folder))

    def repro(self) -> tuple[str, float]:
        """Run ``dvc repro``; what it printed, and the seconds it took."""
        start = time.monotonic()
        done = subprocess.run(
            ["dvc", "repro"], cwd=self.folder, env=self.environment, text=True, timeout=1800,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout, time.monotonic() - start

    def tsv(self, *words: str) -> dict[str, Any]:
        """What a ``tsv`` command prints as JSON."""
        command = [sys.executable, "-m", "tsvlib", *words, "--json"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=True
        )
        return json.loads(done.stdout)

    def summary(self) -> dict[str, dict[str, float]]:
        return json.loads((self.folder / "metrics" / "lab-8" / "summary.json").read_text())

    def set_alpha(self, alpha: float) -> None:
        file = self.folder / "params.yaml"
        text = file.read_text()
        file.write_text(text.replace("tsv-m:\n    alpha: 1.0", f"tsv-m:\n    alpha: {alpha}"))
        assert file.read_text() != text


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project") / "tsvlib"
    folder.mkdir()
    project = Project(folder)
    yield project
    subprocess.run([sys.executable, "-m", "flows.server", "stop"], cwd=folder, env=project.environment, check=True)


def test_the_papers_orderings_hold(project: Project) -> None:
    project.repro()
    normalised = {name: row["accuracy_normalized"] for name, row in project.summary().items()}
    order = ["zero-shot", "average", "task-arithmetic", "tsv-m", "tsv-c"]
    assert sorted(order, key=normalised.__getitem__) == order
    assert normalised["tsv-m"] >= MARGIN + normalised["task-arithmetic"]
    assert normalised["tsv-m"] >= 0.9
    assert normalised["tsv-c"] >= 0.99
    sizes = {name: row["bytes_ratio"] for name, row in project.summary().items()}
    assert sizes["tsv-m"] == pytest.approx(1, abs=0.001)
    assert sizes["fine-tuned"] == pytest.approx(8, abs=0.01)
    assert sizes["tsv-c"] < 1


def test_tsv_m_needs_both_of_its_steps(project: Project) -> None:
    rows = project.tsv("study", "ablation", "--suite", "lab-8", "--alpha", "1")["rows"]
    means = {row["variant"]: row["accuracy_normalized"] for row in rows if row["task"] == "mean"}
    for part in ("neither", "low-rank", "orthogonal"):
        assert means["both"] >= MARGIN + means[part]


def test_a_second_run_does_nothing(project: Project) -> None:
    printed, seconds = project.repro()
    assert "Running stage" not in printed
    assert seconds < 20


def test_a_new_alpha_reruns_what_depends_on_it(project: Project) -> None:
    before = project.summary()
    project.set_alpha(1.2)
    printed, _ = project.repro()
    ran = [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]
    assert ran == ["merge@tsv-m", "evaluate", "compare", "promote"]
    after = project.summary()
    assert after["tsv-m"] != before["tsv-m"]
    assert after["average"] == before["average"]
