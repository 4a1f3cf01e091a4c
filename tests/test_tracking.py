"""Runs in MLflow: sent once, kept while MLflow cannot take them; the registry's champion and what replaces it."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tasks.outbox import Outbox, finished_runs, push_or_keep
from tasks.registry import promote
from tasks.rule import Rule
from tasks.run_record import CONTENT_TAG, DataSet, RunRecord, TrackingError
from tsvlib import merge
from tsvlib.archive import compress
from tsvlib.checkpoint import open_checkpoint, write_checkpoint
from tsvlib.suite import Suite


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make one."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{file}")
    MlflowClient().search_experiments()
    return file


@pytest.fixture
def database(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mlflow.db"
    shutil.copy(empty_database, file)
    mlflow.set_tracking_uri(f"sqlite:///{file}")
    yield file
    mlflow.set_tracking_uri(None)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def record(name: str = "tsv-m", accuracy: float = 0.75, **tags: str) -> RunRecord:
    return RunRecord(
        experiment="tiny",
        name=name,
        description=f"**{name}**",
        tags={"kind": "merged", "candidate_digest": "d" * 64, "base_digest": "b" * 64} | tags,
        parameters={"method": name, "alpha": 1.0},
        metrics={"accuracy": accuracy, "accuracy_normalized": accuracy, "accuracy/a": accuracy, "bytes": 10.0},
        datasets=[DataSet(name="a", digest="0" * 16, source="data/a", split="test", images=40)],
    )


def put(outbox: Outbox, one: RunRecord) -> None:
    note = outbox.folder.parent / "note.json"
    note.write_text("{}")
    outbox.put(one, {"provenance.json": note, "suite/table.json": note})


def test_a_run_has_all_that_the_page_shows(database: Path, outbox: Outbox) -> None:
    put(outbox, record())
    (sent,) = outbox.push()
    client = MlflowClient()
    run = client.get_run(sent.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tsv-m")
    assert run.data.metrics["accuracy/a"] == 0.75
    assert run.data.params == {"method": "tsv-m", "alpha": "1.0"}
    assert run.data.tags["mlflow.note.content"] == "**tsv-m**"
    assert [(one.dataset.name, one.tags[0].value) for one in run.inputs.dataset_inputs] == [("a", "test")]
    assert {one.path for one in client.list_artifacts(sent.run_id)} == {"provenance.json", "suite"}
    (model,) = run.outputs.model_outputs
    assert {one.key for one in client.get_logged_model(model.model_id).metrics} >= {"accuracy", "accuracy/a"}
    assert outbox.waiting() == []


def test_the_same_run_is_sent_once_and_a_changed_one_again(database: Path, outbox: Outbox) -> None:
    for one, new in [(record(), True), (record(), False), (record(accuracy=0.5), True)]:
        put(outbox, one)
        assert [sent.new for sent in outbox.push()] == [new]
    assert len(finished_runs("tiny")) == 2
    timed = record().model_copy(update={"metrics": record().metrics | {"seconds/make": 3.0}})
    assert timed.content == record().content


def test_a_run_that_died_half_way_is_marked_failed_and_sent_anew(database: Path, outbox: Outbox) -> None:
    client = MlflowClient()
    experiment = client.create_experiment("tiny")
    dead = client.create_run(experiment, run_name="tsv-m", tags={CONTENT_TAG: record().content}).info.run_id
    put(outbox, record())
    (sent,) = outbox.push()
    assert client.get_run(dead).info.status == "FAILED"
    assert (sent.new, client.get_run(sent.run_id).info.status) == (True, "FINISHED")


def test_what_fails_half_way_is_marked_failed_and_waits(
    database: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(outbox, record())
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_artifacts", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        assert push_or_keep(outbox) == []
    assert "cannot take runs: disk full" in caplog.text
    assert "1 runs are kept" in caplog.text
    client = MlflowClient()
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]
    assert [sent.new for sent in outbox.push()] == [True]


def test_a_deleted_experiment(database: Path, outbox: Outbox) -> None:
    client = MlflowClient()
    experiment = client.create_experiment("tiny")
    client.delete_experiment(experiment)
    put(outbox, record())
    with pytest.raises(TrackingError, match=f"was deleted.*mlflow experiments restore -x {experiment}"):
        list(outbox.push())
    assert len(outbox.waiting()) == 1
    client.restore_experiment(experiment)
    assert len(list(outbox.push())) == 1


def test_no_server(outbox: Outbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        mlflow.set_tracking_uri(f"http://127.0.0.1:{taken.getsockname()[1]}")
        put(outbox, record())
        try:
            with pytest.raises(TrackingError, match="cannot take runs"):
                list(outbox.push())
            assert finished_runs("tiny") == {}
        finally:
            mlflow.set_tracking_uri(None)
    assert len(outbox.waiting()) == 1


def test_a_read_only_database(database: Path, outbox: Outbox) -> None:
    mlflow.set_tracking_uri(f"sqlite:///file:{database}?mode=ro&uri=true")
    put(outbox, record())
    with pytest.raises(TrackingError, match="may not be written"):
        list(outbox.push())
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    assert len(list(outbox.push())) == 1


def test_an_old_schema(database: Path, outbox: Outbox) -> None:
    with sqlite3.connect(database) as opened:
        opened.execute("UPDATE alembic_version SET version_num = '2b4d017a5e9b'")
    opened.close()
    put(outbox, record())
    with pytest.raises(TrackingError, match=r"out-of-date database schema.*mlflow db upgrade"):
        list(outbox.push())
    assert len(outbox.waiting()) == 1


@pytest.mark.slow
def test_a_locked_database(database: Path, outbox: Outbox) -> None:
    MlflowClient().search_experiments()
    put(outbox, record())
    holder = sqlite3.connect(database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TrackingError, match="locked by another process"):
        list(outbox.push())
    holder.execute("ROLLBACK")
    holder.close()
    assert len(list(outbox.push())) == 1


@pytest.fixture
def files(suite: Suite, tmp_path: Path) -> dict[str, Path]:
    """Digest -> file, of three candidates."""
    base = open_checkpoint(suite.base_uri)
    tasks = {name: open_checkpoint(uri) for name, uri in suite.checkpoints.items()}
    for method in ("average", "tsv-m"):
        merged = merge(base, tasks, method=method)
        write_checkpoint(tmp_path / f"{method}.safetensors", merged.specs, merged.items(), merged.metadata)
    compress(base, tasks, out=tmp_path / "tsv-c.safetensors")
    return {open_checkpoint(file).digest: file for file in tmp_path.glob("*.safetensors")}


@pytest.mark.slow
def test_the_best_is_registered_and_a_worse_one_replaces_nothing(
    database: Path, outbox: Outbox, suite: Suite, files: dict[str, Path]
) -> None:
    digests = {file.stem: digest for digest, file in files.items()}
    rule, client = Rule(margin=0.01), MlflowClient()

    def tracked(name: str, accuracy: float) -> None:
        put(outbox, record(name, accuracy, candidate_digest=digests[name]))
        list(outbox.push())

    tracked("tsv-m", 0.5)
    first = promote(suite, "champion", rule, files)
    assert (first.promoted, first.version, first.candidate) == (True, 1, "tsv-m")
    again = promote(suite, "champion", rule, files)
    assert (again.promoted, again.version) == (False, 1)
    assert again.why == "tsv-m bears the alias already, as version 1 (tsv-m)"
    tracked("average", 0.505)
    close = promote(suite, "champion", rule, files)
    assert not close.promoted
    assert "average is not better by more than 0.01: accuracy_normalized 0.5050 against 0.5000" in close.why
    tracked("average", 0.6)
    better = promote(suite, "champion", rule, files)
    assert (better.promoted, better.version) == (True, 2)
    version = client.get_model_version_by_alias("tiny", "champion")
    assert (int(version.version), version.tags["candidate"], version.tags["base_digest"]) == (2, "average", "b" * 64)
    assert "average is better: accuracy_normalized 0.6000 against 0.5000 of version 1 (tsv-m)" in version.description
    tracked("tsv-m", 0.9)
    without_file = promote(suite, "champion", rule, {digests["average"]: files[digests["average"]]})
    assert not without_file.promoted
    nobody = promote(suite, "archive", Rule(among="tags.kind = 'archive'"), files)
    assert (nobody.promoted, nobody.candidate, nobody.version) == (False, None, None)


@pytest.mark.slow
def test_the_registered_model_classifies(
    database: Path, outbox: Outbox, suite: Suite, files: dict[str, Path], tmp_path: Path
) -> None:
    digest = next(digest for digest, file in files.items() if file.stem == "tsv-c")
    put(outbox, record("tsv-c", kind="archive", candidate_digest=digest))
    list(outbox.push())
    assert promote(suite, "archive", Rule(among="tags.kind = 'archive'"), files).promoted
    model = mlflow.pyfunc.load_model("models:/tiny@archive")
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/tiny@archive"))
    assert not list(folder.rglob("*.pkl")), "nothing is pickled"
    assert "torch==" in (folder / "requirements.txt").read_text()
    image = next(iter(suite.images("side", "test").encoded([0])))
    table = model.predict(pd.DataFrame({"image": [image, image], "task": ["side", "bright"]}))
    assert list(table["task"]) == ["side", "bright"]
    assert set(table["probabilities"][0]) == set(suite.classes("side"))
    assert len(model.predict(pd.DataFrame({"image": [image]}), params={"task": "stripe", "top": 1})) == 1
    for bad, message in [
        ({"image": [b"no image"], "task": ["side"]}, "image 0: no image that is known"),
        ({"image": [image]}, "name one of bright, side, stripe"),
        ({"image": [image], "task": ["sied"]}, "Did you mean 'side'"),
        ({"image": [image] * 257, "task": ["side"] * 257}, "257 images in one request are more than 256"),
        ({"image": [b" " * (32 * 2**20 + 1)], "task": ["side"]}, "scale it down"),
    ]:
        with pytest.raises(MlflowException, match=message):
            model.predict(pd.DataFrame(bad))
    example = json.loads((folder / "input_example.json").read_text())
    assert example["columns"] == ["image", "task"]
