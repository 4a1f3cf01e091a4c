"""Checkpoints that MLflow and DVC keep, by their real clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tsvlib.checkpoint import Checkpoint, open_checkpoint
from tsvlib.errors import CheckpointError

WEIGHTS = {"visual.proj": torch.arange(6.0).reshape(2, 3)}


def assert_is_the_model(opened: Checkpoint, uri: str) -> None:
    assert opened.source == uri
    assert {name: opened[name].tolist() for name in opened} == {name: t.tolist() for name, t in WEIGHTS.items()}


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSV_STORE", str(tmp_path / "store"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights under DVC; revision v1 has other values than the newest."""
    folder = tmp_path_factory.mktemp("repository")
    dvc = [sys.executable, "-m", "dvc", "--quiet"]

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    run("git", "init", "--quiet")
    run("git", "config", "user.email", "lab@example.org")
    run("git", "config", "user.name", "lab")
    run(*dvc, "init")
    (folder / "models").mkdir()
    for tag, scale in (("v1", 1.0), ("v2", 2.0)):
        scaled = {name: scale * tensor for name, tensor in WEIGHTS.items()}
        safetensors.torch.save_file(scaled, folder / "models" / "encoder.safetensors")
        run(*dvc, "add", "models/encoder.safetensors")
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message", tag)
        run("git", "tag", tag)
    return folder


@pytest.mark.slow
def test_dvc(repository: Path) -> None:
    for place in ("models/encoder.safetensors", "models"):
        assert_is_the_model(open_checkpoint(f"dvc://{repository}#{place}@v1"), f"dvc://{repository}#{place}@v1")
    newest = open_checkpoint(f"dvc://{repository}#models/encoder.safetensors")
    assert torch.equal(newest["visual.proj"], 2 * WEIGHTS["visual.proj"])


@pytest.mark.slow
def test_what_dvc_does_not_have(repository: Path) -> None:
    for place, message in {
        "models/no.safetensors": "dvc://{}#models/no.safetensors: there is no such file. Check the address.",
        "models@v9": "dvc://{}#models@v9: cannot be read: RevError: unknown Git revision 'v9'.",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(f"dvc://{repository}#{place}")
        assert str(caught.value) == message.format(repository)


def test_an_address_that_is_not_dvc() -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("dvc://models/encoder.safetensors")
    assert str(caught.value) == (
        "dvc://models/encoder.safetensors: write it as dvc://REPOSITORY#PATH@REVISION, such as "
        "dvc://.#models/a.safetensors."
    )


@pytest.fixture(scope="module")
def mlflow_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run with weights among its artifacts, registered as version 1 of ``encoder``, alias ``champion``."""
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    before = os.getcwd()
    os.chdir(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    safetensors.torch.save_file(WEIGHTS, folder / "encoder.safetensors")
    client = mlflow.MlflowClient()
    run = client.create_run(client.create_experiment("lab", artifact_location=f"file://{folder}/artifacts"))
    client.log_artifact(run.info.run_id, folder / "encoder.safetensors", "model/weights")
    client.log_text(run.info.run_id, "about", "model/README.md")
    client.create_registered_model("encoder")
    version = client.create_model_version("encoder", f"runs:/{run.info.run_id}/model", run.info.run_id)
    client.set_registered_model_alias("encoder", "champion", version.version)
    yield run.info.run_id
    mlflow.set_tracking_uri(None)
    os.chdir(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "uri",
    [
        "runs:/{run}/model",
        "runs:/{run}/model/weights/encoder.safetensors",
        "models:/encoder/1",
        "models:/encoder@champion",
    ],
)
def test_mlflow(mlflow_run: str, uri: str) -> None:
    assert_is_the_model(open_checkpoint(uri.format(run=mlflow_run)), uri.format(run=mlflow_run))


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["models:/decoder/1", "models:/encoder/7", "models:/encoder@loser", "runs:/0123/model"])
def test_what_mlflow_does_not_have(mlflow_run: str, uri: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{uri}: cannot be read: .*not found"):
        open_checkpoint(uri)


@pytest.mark.slow
def test_a_run_without_such_artifacts(mlflow_run: str) -> None:
    uri = f"runs:/{mlflow_run}/nothing"
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(uri)
    assert str(caught.value) == f"{uri}: MLflow has no artifacts there. Check the name, the version and the path."


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server that also hands out the artifacts, so that its clients reach no storage themselves."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--serve-artifacts",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 300
        while not _answers(f"{url}/health"):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.mark.services
@pytest.mark.slow
def test_mlflow_through_a_server_that_hands_out_artifacts(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(mlflow_server)
    try:
        client = mlflow.MlflowClient()
        run = client.create_run(client.create_experiment("lab")).info
        assert run.artifact_uri.startswith("mlflow-artifacts:")
        safetensors.torch.save_file(WEIGHTS, tmp_path / "encoder.safetensors")
        client.log_artifact(run.run_id, str(tmp_path / "encoder.safetensors"), "model/weights")
        client.create_registered_model("encoder")
        version = client.create_model_version("encoder", f"{run.artifact_uri}/model", run.run_id)
        client.set_registered_model_alias("encoder", "champion", version.version)
        uris = [f"runs:/{run.run_id}/model", "models:/encoder/1", "models:/encoder@champion"]
        for uri in uris:
            assert_is_the_model(open_checkpoint(uri), uri)
        with pytest.raises(CheckpointError, match=r"models:/encoder/9: cannot be read: .*not found"):
            open_checkpoint("models:/encoder/9")
        asked = []
        monkeypatch.setattr("tasks.checkpoint_sources._download", asked.append)
        assert_is_the_model(open_checkpoint("models:/encoder/1"), "models:/encoder/1")
        assert asked == []
        monkeypatch.setenv("TSV_OFFLINE", "1")
        for uri in uris:
            assert_is_the_model(open_checkpoint(uri), uri)
    finally:
        mlflow.set_tracking_uri(before)
