"""A parsed request becomes MLflow's table, the package's predictions, and the response's JSON.

MLflow's scoring server parses the body again, and its error documents repeat the request's data and
stack traces. Here its own function builds the table from the JSON that the guard parsed, and each
of its errors becomes a refusal in one sentence.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.scoring_server import infer_and_parse_data

from model_registry.request_guard import FORM, Document, Predict, Refusal

MAX_REASON = 300  # characters of MLflow's reason that a client sees
_log = logging.getLogger(__name__)


def predict_with(model: PyFuncModel) -> Predict:
    """The asynchronous function that predicts a request's rows in the event loop's thread pool;
    504 after MLflow's own time limit."""
    seconds = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()  # type: ignore[no-untyped-call]

    async def predict(document: Document) -> bytes:
        running = asyncio.to_thread(response_of, model, document)
        try:
            return await asyncio.wait_for(running, seconds)
        except TimeoutError as error:
            raise Refusal(504, "the request took too long") from error

    return predict


def response_of(model: PyFuncModel, document: Document) -> bytes:
    """{"predictions": [...]} for a request that the guard accepted; a Refusal where MLflow or the
    model does not take its rows."""
    params = document.get("params")
    tables = {name: rows for name, rows in document.items() if name != "params"}
    try:
        table = _table(tables, model.metadata.get_input_schema())  # type: ignore[no-untyped-call]
        predictions = model.predict(table, params=params)
    except Refusal:
        raise
    except MlflowException as error:
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        if status >= 500:
            raise _failure() from error
        raise Refusal(status, _reason(error)) from error
    except Exception as error:
        # Whatever nobody foresaw is a failure of this server: the log says why, the client does not
        # learn it.
        raise _failure() from error

    return json.dumps({"predictions": predictions}).encode()


def _table(tables: Document, schema: Any) -> Any:
    try:
        return infer_and_parse_data(tables, schema)
    except UnicodeError as error:  # half of a surrogate pair is valid JSON
        raise Refusal(400, "the request holds text that is not Unicode") from error
    except MlflowException as error:
        # MLflow's sentences about the form name its own documentation, ours shows an example.
        if "Error: " in error.message:
            raise
        raise Refusal(400, f"the rows cannot be read; send {FORM}") from error


def _reason(error: MlflowException) -> str:
    """The last part of MLflow's message, which repeats the data before it."""
    return error.message.rpartition("Error: ")[2][:MAX_REASON]


def _failure() -> Refusal:
    _log.exception("a request failed")
    return Refusal(500, "the server failed at this request; its log says why")
