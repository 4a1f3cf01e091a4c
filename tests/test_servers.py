"""PostgreSQL behind Prefect and MLflow, and S3 behind MLflow's artifacts and DVC's remote: the same pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest
from conftest import clean_environment, make_suite
from servers import PrefectApi, mlflow_server, postgres, prefect_server, s3_server

ROOT = Path(__file__).parents[1]
PARAMS = "suite: suite.yaml\nmerge: {average: {}, tsv-m: {}}\ncompress: {}\n"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.mark.services
@pytest.mark.slow
def test_postgresql_and_s3(tmp_path: Path) -> None:
    make_suite(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    home = tmp_path / "home"
    home.mkdir()
    environment = clean_environment(home, PYTHONPATH=str(ROOT), DO_NOT_TRACK="true", **KEYS)
    environment["PREFECT_HOME"] = str(home / "prefect")
    with ExitStack() as stack:
        database = stack.enter_context(postgres(["prefect", "mlflow"]))
        endpoint = stack.enter_context(s3_server(home / "s3", environment))
        storage = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )
        for bucket in ("mlflow", "dvc"):
            storage.create_bucket(Bucket=bucket)
        on_postgres = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/prefect"}
        prefect = stack.enter_context(prefect_server(home / "prefect-server", environment | on_postgres))
        mlflow = stack.enter_context(
            mlflow_server(
                home / "mlflow-server", environment | {"MLFLOW_S3_ENDPOINT_URL": endpoint},
                "--backend-store-uri", f"postgresql://{database}/mlflow", "--artifacts-destination", "s3://mlflow/runs",
            )
        )  # fmt: skip
        environment |= {"PREFECT_API_URL": prefect, "MLFLOW_TRACKING_URI": mlflow}
        _run(tmp_path, environment, "-m", "flows.pipeline")
        summary = json.loads((tmp_path / "metrics" / "tiny" / "summary.json").read_text())
        assert set(summary) == {"zero-shot", "fine-tuned", "average", "tsv-m"}

        runs = PrefectApi(prefect).post("/flow_runs/filter", {"flows": {"name": {"any_": ["pipeline"]}}})
        assert [run["state"]["type"] for run in runs] == ["COMPLETED"]
        assert not (home / "prefect" / "prefect.db").exists(), "nothing in SQLite"

        tracked = json.loads(_run(tmp_path, environment, "-c", TRACKED).splitlines()[-1])
        assert set(tracked) == set(summary)
        assert all(accuracy == pytest.approx(summary[name]["accuracy"]) for name, accuracy in tracked.items())
        kept = [one["Key"] for one in storage.list_objects_v2(Bucket="mlflow", Prefix="runs/")["Contents"]]
        assert sum(key.endswith("/comparison.svg") for key in kept) == len(summary)
        assert not (tmp_path / "mlruns").exists()

        _share_by_dvc(tmp_path, environment, endpoint)
        assert storage.list_objects_v2(Bucket="dvc")["KeyCount"] > 0


TRACKED = """
import json, mlflow
found = mlflow.search_runs(experiment_names=["tiny"], output_format="list")
print(json.dumps({run.info.run_name: run.data.metrics["accuracy"] for run in found}))
"""


def _share_by_dvc(folder: Path, environment: dict[str, str], endpoint: str) -> None:
    """Push a merged model to the remote, lose it here with the cache, and pull it again."""
    model = folder / "models" / "tiny" / "tsv-m.safetensors"
    content = model.read_bytes()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for words in (
        ["init", "-q"],
        ["remote", "add", "-d", "s3", "s3://dvc/store"],
        ["remote", "modify", "s3", "endpointurl", endpoint],
        ["add", "-q", str(model)],
        ["push", "-q"],
    ):
        _run(folder, environment, "-m", "dvc", *words)
    model.unlink()
    subprocess.run(["rm", "-r", str(folder / ".dvc" / "cache")], check=True)
    _run(folder, environment, "-m", "dvc", "pull", "-q")
    assert model.read_bytes() == content


def _run(folder: Path, environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, text=True, capture_output=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
