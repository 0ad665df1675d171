"""The model as MLflow loads it: rows of base64 photos or aligned faces -> one JSON document each.

This file is the package's code ("models from code": nothing is pickled). It and the part of
`visage` that it imports are all that a prediction needs. What a row may hold, and each refusal, is
in `visage.server.answers`, which the HTTP server uses as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from visage.inference.photos import Model
from visage.server.answers import Answers
from visage.server.limits import Limits
from visage.server.refusals import Refusal
from visage.server.score_maps import torch_score_maps
from visage.server.tables import Document
from visage.weights import load_model


class ServedModel(PythonModel):
    """A predictor behind a request's limits; `version` is the registered one."""

    answers: Answers
    version: str | None = None

    def load_context(self, context: Any) -> None:
        """Reads weights, config and limits; ValueError where weights and config do not match."""
        folder = Path(context.artifacts["model"])
        limits = Limits(**json.loads(Path(context.artifacts["limits"]).read_text(encoding="utf-8")))
        predictor = Model(*load_model(folder), max_photo_pixels=limits.max_photo_pixels)

        self.answers = Answers(predictor, limits, *torch_score_maps(folder, predictor))
        self.version = registered_version(folder.parents[1])

    def predict(
        self,
        context: Any,  # noqa: ARG002  # MLflow passes it
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[Document]:
        """MLflow's entry point: rows with `photo` or `face` -> documents. A bad row is a 400 with
        one sentence."""
        try:
            if not len(model_input.columns):
                # MLflow leaves out what the signature does not name.
                raise Refusal("columns", seen="no column of this model's")
            rows: list[Any] = model_input.to_dict("records")
            documents = self.answers.answer(self.answers.items_of_rows(rows), **(params or {}))
        except Refusal as refused:
            raise MlflowException(str(refused), error_code=INVALID_PARAMETER_VALUE) from None

        for document in documents:
            document["model"]["version"] = self.version
        return documents


def registered_version(package: Path) -> str | None:
    """The version under which MLflow fetched the package from the registry; None for a package from
    elsewhere."""
    # MLflow writes two lines into this file: model_name and model_version.
    note = package / "registered_model_meta"
    if not note.is_file():
        return None
    values = dict(line.split(": ", 1) for line in note.read_text(encoding="utf-8").splitlines())
    return values["model_version"].strip("'\"")


set_model(ServedModel())
