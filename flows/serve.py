"""``tsv serve``: a registered model on MLflow's own scoring server, with bounds on what a client may send."""

from __future__ import annotations

import os

from tasks.bounded_server import MOST_BYTES, VARIABLE
from tasks.serving_model import VARIABLE as MEMORY_VARIABLE
from tsvlib.errors import CheckpointError
from tsvlib.serving import ENCODER_BYTES
from tsvlib.sources import clear_errors


def serve(
    model: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 5001,
    workers: int = 1,
    most_body_bytes: int = MOST_BYTES,
    most_waiting: int = 64,
    encoder_bytes: int = ENCODER_BYTES,
) -> None:
    """Serve a registered model by HTTP until Ctrl-C; the protocol is that of 'mlflow models serve'.

    Args:
        model: such as models:/lab-8@champion.
        host: address to listen on.
        port: port to listen on.
        workers: processes, each with the model in its memory.
        most_body_bytes: a larger request is answered with 413.
        most_waiting: connections at a time of each worker, idle ones among them; the others are answered with 503.
        encoder_bytes: of an archive's encoders in memory, per worker.
    """
    import uvicorn
    from mlflow.artifacts import download_artifacts
    from mlflow.pyfunc.scoring_server import _SERVER_MODEL_PATH

    with clear_errors(model):
        folder = download_artifacts(artifact_uri=model)
    if not os.path.exists(os.path.join(folder, "MLmodel")):
        raise CheckpointError(f"{model}: is no MLflow model. 'tsv promote' registers one.")
    os.environ |= {
        _SERVER_MODEL_PATH: folder,
        VARIABLE: str(most_body_bytes),
        MEMORY_VARIABLE: str(encoder_bytes),
    }
    uvicorn.run(
        "tasks.bounded_server:create_application",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        limit_concurrency=most_waiting + 1,  # uvicorn counts the connection that it refuses, too
    )
