"""Killed at any moment, run again: nothing that was finished is computed twice, and the result is the same."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import clean_environment, write
from loopback import Site, serving
from test_flows import Work

from tsvlib.store import Store

pytestmark = pytest.mark.slow

LAYERS, TASKS = 10, 8
COMMAND = [sys.executable, "-c", "from tsvlib.cli import main; main()"]
KILLS_OF_FLOWS = ["merge tsv-m", "merge tsv-m", "merge average", "compress tsv-c", "compress tsv-c", "evaluate",
                  "compare", "pipeline"]  # fmt: skip


class Folder:
    """A base and fine-tunes of a size that takes seconds to merge, and the command beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        base = {f"{i}.weight": torch.randn(320, 400, generator=generator) for i in range(LAYERS)}
        write(folder / "base.safetensors", base)
        for task in range(TASKS):
            tuned = {k: v + 0.01 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
            write(folder / f"{task}.safetensors", tuned)

    def start(self, verb: str, store: Store, out: str = "", limit: int | None = None) -> subprocess.Popen[str]:
        tasks = [word for task in range(TASKS) for word in ("--task", f"t{task}={task}.safetensors")]
        return subprocess.Popen(
            [*COMMAND, verb, "--base", "base.safetensors", *tasks, "--json", "--force", "--cache",
             "--out", out or f"{verb}.safetensors"],
            cwd=self.folder, env=clean_environment(self.folder, TSV_STORE=str(store.root), PYTHONPATH=str(ROOT)),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )  # fmt: skip

    def run(self, verb: str, store: Store) -> dict:
        running = self.start(verb, store)
        out, errors = running.communicate(timeout=900)
        assert running.returncode == 0, errors
        return json.loads(out)


ROOT = Path(__file__).parents[1]


def records(store: Store, kind: str) -> int:
    return len(list((store.root / "records" / kind).rglob("*.json")))


def kill_at_random(running: subprocess.Popen[str], store: Store, seconds: float, seed: int) -> None:
    """After a random share of the time that the work takes, which begins when the store is first used."""
    while not (store.root / "users").exists() and running.poll() is None:
        time.sleep(0.005)
    time.sleep(random.Random(seed).random() * seconds)
    running.kill()
    running.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("crash"))


@pytest.fixture(scope="module")
def undisturbed(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, float]]:
    """Verb -> the file that it makes, and the seconds that its work takes."""
    found = {}
    for verb in ("merge", "compress"):
        store = Store(tmp_path_factory.mktemp("store") / "store")
        running = folder.start(verb, store)
        while not (store.root / "users").exists():
            time.sleep(0.005)
        start = time.monotonic()
        running.communicate(timeout=900)
        assert running.returncode == 0
        found[verb] = ((folder.folder / f"{verb}.safetensors").read_bytes(), time.monotonic() - start)
    return found


@pytest.mark.parametrize(
    ("verb", "seed"),
    [*(("merge", seed) for seed in range(8)), *(("compress", seed) for seed in range(4))],
)
def test_a_killed_command_goes_on(
    folder: Folder, undisturbed: dict[str, tuple[bytes, float]], tmp_path: Path, verb: str, seed: int
) -> None:
    expected, seconds = undisturbed[verb]
    store, out = Store(tmp_path / "store"), folder.folder / f"{verb}.safetensors"
    out.unlink(missing_ok=True)
    kill_at_random(folder.start(verb, store), store, seconds, seed)
    assert not out.exists() or out.read_bytes() == expected, "a file is whole or not there"
    factors, merged = records(store, "factors"), records(store, "merged")
    work = folder.run(verb, store)["work"]
    assert out.read_bytes() == expected
    assert work.get("factors", {"computed": 0})["computed"] == LAYERS * TASKS - factors
    if verb == "merge":
        assert work["merged"] == {"reused": merged, "computed": LAYERS - merged}
    left = [file for file in folder.folder.iterdir() if file.name.endswith(".partial")]
    assert not left, "what the killed process left is cleared away"


def test_two_at_once_share_the_work(
    folder: Folder, undisturbed: dict[str, tuple[bytes, float]], tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    both = [folder.start("merge", store, f"m{number}.safetensors") for number in (1, 2)]
    results = [json.loads(running.communicate(timeout=900)[0]) for running in both]
    assert sum(result["work"].get("factors", {"computed": 0})["computed"] for result in results) == LAYERS * TASKS
    assert sum(result["work"]["merged"]["computed"] for result in results) == LAYERS
    for number in (1, 2):
        assert (folder.folder / f"m{number}.safetensors").read_bytes() == undisturbed["merge"][0]


def test_a_full_disk_is_told_and_leaves_nothing_broken(
    folder: Folder, undisturbed: dict[str, tuple[bytes, float]], tmp_path: Path
) -> None:
    store, out = Store(tmp_path / "store"), folder.folder / "merge.safetensors"
    out.unlink(missing_ok=True)
    running = folder.start("merge", store, limit=len(undisturbed["merge"][0]) // 2)  # as on a disk with that much room
    _, errors = running.communicate(timeout=900)
    assert running.returncode == 2, errors
    assert "grows beyond the largest file allowed here; nothing was written" in errors
    assert "Traceback" not in errors
    assert not out.exists()
    assert folder.run("merge", store)["work"]["merged"]["reused"] > 0, "what was finished is kept"
    assert out.read_bytes() == undisturbed["merge"][0]


def test_a_full_disk_of_the_store_stops_no_merge(
    folder: Folder, undisturbed: dict[str, tuple[bytes, float]], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a file system of a size")
    try:
        running = folder.start("merge", Store(small / "store"))
        _, errors = running.communicate(timeout=900)
        assert running.returncode == 0, errors
        assert "the disk is full" in errors
        assert "The work goes on without keeping this result." in errors
        assert (folder.folder / "merge.safetensors").read_bytes() == undisturbed["merge"][0]
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """A small suite, its server up, and the whole pipeline run once without being disturbed."""
    work = Work(tmp_path_factory.mktemp("work"))
    work.run("flows.server", "start")
    work.run("flows.pipeline")
    yield work
    work.run("flows.server", "stop")


def results(work: Work) -> dict[str, bytes]:
    """What the stages make, without what a clock measured."""
    found = {file.name: file.read_bytes() for file in sorted((work.folder / "models" / "tiny").glob("*.safetensors"))}
    summary = json.loads((work.folder / "metrics" / "tiny" / "summary.json").read_text())
    passing = ("seconds/", "peak_", "reused/", "computed/")
    lasting = {name: {k: v for k, v in row.items() if not k.startswith(passing)} for name, row in summary.items()}
    return found | {"summary": json.dumps(lasting, sort_keys=True).encode()}


@pytest.mark.services
@pytest.mark.parametrize(("seed", "stage"), list(enumerate(KILLS_OF_FLOWS)))
def test_a_killed_stage_goes_on(work: Work, seed: int, stage: str) -> None:
    expected = results(work)
    store = Store(work.folder / ".tsv" / "store")
    for folder in ("records", "results"):  # nothing is known, nothing is made
        subprocess.run(["rm", "-rf", str(store.root / folder)], check=True)
    words = [f"flows.{stage.split()[0]}", *stage.split()[1:]]
    start = time.monotonic()
    running = work.start(*words)
    while not (store.root / "records").exists() and running.poll() is None and time.monotonic() - start < 60:
        time.sleep(0.02)
    time.sleep(random.Random(seed).random() * 2)
    running.kill()
    running.communicate()
    factors = records(store, "factors")
    out = work.run(*words)
    assert results(work) == expected
    if stage == "merge tsv-m":
        (line,) = [line for line in out.splitlines() if "tsv-m of tiny: found again" in line]
        reused = int(line.split("found again ")[1].split()[0])
        assert reused == factors


@pytest.mark.services
def test_a_dead_server_is_replaced_within_seconds(work: Work) -> None:
    expected = results(work)
    subprocess.run(["rm", "-rf", str(work.folder / ".tsv" / "store" / "results")], check=True)
    state = json.loads((work.folder / ".tsv" / "prefect" / "server.json").read_text())
    log = work.folder / ".tsv" / "prefect" / "server.log"
    before = log.stat().st_size
    running = work.start("flows.pipeline")
    deadline = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < deadline and b"pipeline" not in log.read_bytes()[before:]:
        if (work.folder / ".tsv" / "store" / "results").exists():  # the first task has ended
            break
        time.sleep(0.02)
    os.killpg(state["pid"], signal.SIGKILL)
    out, _ = running.communicate(timeout=900)
    assert running.returncode == 0, out
    assert "the local Prefect server died; starting it again and going on" in out
    assert results(work) == expected


@pytest.mark.services
def test_a_locked_database_of_mlflow_stops_no_comparison(work: Work) -> None:
    database = sqlite3.connect(work.folder / "mlflow.db", isolation_level=None)
    work.set_alpha(0.7)
    try:
        work.run("flows.merge", "tsv-m")
        work.run("flows.evaluate")
        database.execute("BEGIN EXCLUSIVE")
        out = work.run("flows.compare")
        assert "locked by another process" in out
        assert "send them with 'tsv track push'. Work goes on." in out
        assert "tiny: tsv-m" in work.run("tsvlib", "track", "status")
        database.execute("ROLLBACK")
        assert "tiny: tsv-m sent" in work.run("tsvlib", "track", "push")
        assert "nothing waits" in work.run("tsvlib", "track", "status")
    finally:
        database.close()
        work.set_alpha(1.0)
        work.run("flows.pipeline")


@pytest.mark.services
def test_a_flaky_network_is_tried_again_within_a_flow(work: Work) -> None:
    checkpoint = work.folder / "side.safetensors"
    suite = work.folder / "suite.yaml"
    written = suite.read_text()
    content = checkpoint.read_bytes()
    with serving(Site({"/side.safetensors": content})) as site:
        site.fail_with["/side.safetensors"] = [503, 429]
        site.cut_after["/side.safetensors"] = [len(content) // 3]
        suite.write_text(written.replace("side.safetensors", f"{site.url}/side.safetensors"))
        try:
            expected = results(work)
            work.run("flows.merge", "tsv-m")
            assert not site.fail_with["/side.safetensors"]
            assert not site.cut_after["/side.safetensors"]
            assert results(work) == expected
        finally:
            suite.write_text(written)
