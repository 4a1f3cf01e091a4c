"""S3 by the real client libraries (s3fs, botocore) against a server on loopback; any other fsspec system alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch

from tsvlib.checkpoint import open_checkpoint, open_location
from tsvlib.errors import CheckpointError, UnreachableError
from tsvlib.sources import locate

WEIGHTS = {"visual.proj": torch.arange(6.0).reshape(2, 3), "visual.big": torch.arange(300_000.0)}


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSV_STORE", str(tmp_path / "store"))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        import boto3

        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="encoder/model.safetensors", Body=safetensors.torch.save(WEIGHTS))
        client.put_object(Bucket="models", Key="notes/readme.txt", Body=b"none")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.mark.services
@pytest.mark.parametrize("uri", ["s3://models/encoder/model.safetensors", "s3://models/encoder"])
def test_s3(endpoint: str, uri: str) -> None:
    opened = open_checkpoint(uri)
    assert opened.source == uri
    assert all(torch.equal(opened[name], tensor) for name, tensor in WEIGHTS.items())


@pytest.mark.services
def test_s3_header_for_planning(endpoint: str) -> None:
    location = locate("s3://models/encoder/model.safetensors")
    assert open_location(location).specs["visual.big"].shape == (300_000,)
    assert location.file(location.main).version


@pytest.mark.services
def test_s3_without_the_file(endpoint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("s3://models/no.safetensors")
    assert str(caught.value) == "s3://models/no.safetensors: there is no such file. Check the address."


@pytest.mark.services
def test_s3_folder_without_weights(endpoint: str) -> None:
    with pytest.raises(CheckpointError, match="s3://models/notes: holds no weights"):
        open_checkpoint("s3://models/notes")


@pytest.mark.services
def test_s3_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UnreachableError, match=r"s3://models/no\.safetensors: does not answer"):
        open_checkpoint("s3://models/no.safetensors")


def test_any_file_system_of_fsspec() -> None:
    with fsspec.open("memory://models/encoder.safetensors", "wb") as file:
        file.write(safetensors.torch.save(WEIGHTS))
    opened = open_checkpoint("memory://models/encoder.safetensors")
    assert all(torch.equal(opened[name], tensor) for name, tensor in WEIGHTS.items())


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("s3://models/x.safetensors")
    assert str(caught.value) == (
        "s3://models/x.safetensors: needs a package that is not installed: Install s3fs to access S3."
    )
