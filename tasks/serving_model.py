"""The model that MLflow serves: a thin layer over :mod:`tsvlib.serving`. MLflow stores this file, not a pickle.

It is run by the server from its copy, with the copy of tsvlib beside it, so it imports nothing else of the project.
"""

from __future__ import annotations

import os
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from tsvlib.data.decoding import UnreadableImage
from tsvlib.errors import DataError, TSVError
from tsvlib.serving import ENCODER_BYTES, Question, open_classifier

MOST_IMAGES = 256
"""That a request may hold."""
MOST_BYTES = 32 * 2**20
"""That an encoded image may have."""
VARIABLE = "TSV_SERVING_BYTES"


class ClassifierModel(PythonModel):
    """From images to a row for each image and task: class, probability, and those of the likeliest classes."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the exported folder; TSV_SERVING_BYTES bounds the encoders of an archive in memory."""
        self.classifier = open_classifier(context.artifacts["classifier"], int(os.environ.get(VARIABLE, ENCODER_BYTES)))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify a request.

        Args:
            context: of MLflow.
            model_input: column ``image``, bytes of an encoded image (base64 in JSON); if wanted, column ``task``.
            params: ``task`` of rows that name none (empty: every task); ``top``, how many classes to give.
        """
        params = params or {}
        try:
            questions = _questions(model_input, params.get("task") or None)
            found = self.classifier.classify(questions)
            if bad := {row: one for row, one in enumerate(found) if isinstance(one, UnreadableImage)}:
                told = "; ".join(f"image {row}: {why}" for row, why in list(bad.items())[:5])
                raise DataError(f"{len(bad)} of {len(found)} images cannot be decoded: {told}.")
        except TSVError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        rows = []
        for row, answers in enumerate(found):
            for answer in answers if isinstance(answers, list) else ():
                name, probability = answer.best
                rows.append((row, answer.task, name, probability, answer.top(max(1, int(params.get("top", 5))))))
        return pd.DataFrame(rows, columns=["image", "task", "class", "probability", "probabilities"])


def _questions(table: pd.DataFrame, task: str | None) -> list[Question]:
    if not len(table):
        raise DataError("the request holds no images.")
    if len(table) > MOST_IMAGES:
        raise DataError(f"{len(table)} images in one request are more than {MOST_IMAGES}; send them in parts.")
    tasks = table["task"] if "task" in table else [None] * len(table)
    questions = []
    for row, (image, named) in enumerate(zip(table["image"], tasks, strict=True)):
        if len(image) > MOST_BYTES:
            raise DataError(f"image {row}: {len(image):,} bytes are more than {MOST_BYTES:,}; scale it down.")
        questions.append(Question(image, named if isinstance(named, str) and named else task))
    return questions


mlflow.models.set_model(ClassifierModel())
