"""``tsv serve`` as a process of its own: answers, and what it does with bad, oversized, too many and early requests."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import clean_environment
from servers import SECONDS_TO_START, free_port, page_answers, port_answers, running, wait_for

import tsvlib
from tasks import serving_model
from tasks.registry import SIGNATURE
from tsvlib.archive import compress
from tsvlib.checkpoint import open_checkpoint
from tsvlib.serving import export_classifier
from tsvlib.suite import Suite

pytestmark = [pytest.mark.services, pytest.mark.slow]
MOST_WAITING, MOST_BYTES = 2, 100_000


@pytest.fixture(scope="module")
def model(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive as MLflow keeps it."""
    folder = tmp_path_factory.mktemp("model")
    tasks = {name: open_checkpoint(uri) for name, uri in suite.checkpoints.items()}
    compress(open_checkpoint(suite.base_uri), tasks, out=folder / "archive.safetensors", rank_fraction=1.0)
    export_classifier(suite, folder / "archive.safetensors", folder / "classifier")
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=serving_model.__file__,
        artifacts={"classifier": str(folder / "classifier")},
        code_paths=[str(Path(tsvlib.__file__).parent)],
        signature=SIGNATURE,
        pip_requirements=[],
    )
    return folder / "model"


@contextmanager
def serving(model: Path, *options: str) -> Iterator[int]:
    """The port of a server that has just been started, and may be loading yet."""
    port, folder = free_port(), model.parent
    command = [sys.executable, "-m", "tsvlib", "serve", str(model), "--port", str(port), *options]
    environment = clean_environment(folder, PYTHONPATH=str(Path(tsvlib.__file__).parents[1]))
    with running(command, folder, environment, f"serve-{port}.log"):
        yield port


@pytest.fixture(scope="module")
def port(model: Path) -> Iterator[int]:
    bounds = ["--most-waiting", str(MOST_WAITING), "--most-body-bytes", str(MOST_BYTES)]
    with serving(model, *bounds) as port:
        wait_for(lambda: page_answers(f"http://127.0.0.1:{port}/ping"))
        yield port


def post(port: int, body: Any, chunked: bool = False) -> tuple[int, str]:
    """Status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS_TO_START)
    try:
        content = json.dumps(body).encode()
        sent: Any = iter([content[:1000], content[1000:]]) if chunked else content
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", "/invocations", sent, headers, encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def request(*rows: tuple[bytes, str]) -> dict[str, Any]:
    return {
        "dataframe_records": [{"image": base64.b64encode(image).decode(), "task": task} for image, task in rows],
        "params": {"top": 1},
    }


def image_of(suite: Suite, task: str) -> bytes:
    return next(iter(suite.images(task, "test").encoded([0])))


def test_tasks_may_be_mixed_in_a_request(suite: Suite, port: int) -> None:
    status, answer = post(port, request(*((image_of(suite, task), task) for task in suite.tasks)))
    assert status == 200, answer
    found = json.loads(answer)["predictions"]
    assert [one["task"] for one in found] == list(suite.tasks)
    assert all(one["class"] in suite.classes(one["task"]) for one in found)


def test_a_bad_image_is_named(suite: Suite, port: int) -> None:
    status, answer = post(port, request((image_of(suite, "side"), "side"), (b"no image", "side")))
    assert status == 400
    assert "1 of 2 images cannot be decoded: image 1" in answer


@pytest.mark.parametrize("chunked", [False, True])
def test_an_oversized_body_is_refused(port: int, chunked: bool) -> None:
    status, answer = post(port, request((bytes(50 * MOST_BYTES), "side")), chunked)
    assert status == 413
    assert json.loads(answer)["message"] == f"a body of more than {MOST_BYTES:,} bytes"


def test_with_all_places_taken_a_client_is_sent_away_and_served_when_one_is_free(suite: Suite, port: int) -> None:
    asked = request((image_of(suite, "side"), "side"))
    with ExitStack() as held:
        for _ in range(MOST_WAITING):
            wait_for(lambda: post(port, asked)[0] == 200, 30, 0.05)  # the server may not have seen the last one go
            held.enter_context(socket.create_connection(("127.0.0.1", port)))  # and asks nothing
        wait_for(lambda: post(port, asked)[0] == 503, 30, 0.05)
        assert post(port, asked) == (503, "Service Unavailable")
    wait_for(lambda: post(port, asked)[0] == 200, 30)


def test_nobody_is_answered_before_the_model_is_loaded(suite: Suite, model: Path) -> None:
    """One worker opens its port when the model is there."""
    asked = request((image_of(suite, "side"), "side"))
    with serving(model) as port:
        assert not port_answers(port)
        wait_for(lambda: port_answers(port), pause=0.05)
        assert post(port, asked)[0] == 200


def test_early_requests_to_several_workers_wait_for_the_model(suite: Suite, model: Path) -> None:
    """Their common port is open from the start."""
    asked = request((image_of(suite, "side"), "side"))
    with serving(model, "--workers", "2") as port:
        wait_for(lambda: port_answers(port), pause=0.05)
        assert post(port, asked)[0] == 200
