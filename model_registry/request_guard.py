"""POST /invocations over HTTP: what is accepted, and a sentence for everything else.

The method, the content type and the size are checked chunk by chunk before the body is parsed, so
that nothing large is ever held. Then the JSON is parsed once and its form is checked. Every refusal
is a 4xx, or a 503 when too many requests wait, with a JSON document {"error": one sentence}: no
stack trace, no path, none of the request's own data.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Document = dict[str, Any]
Predict = Callable[[Document], Awaitable[bytes]]  # the request -> the response's JSON

JSON = "application/json"

# MLflow's names for one table of rows
FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")
FORM = '{"dataframe_records": [{"photo": "<base64>"}], "params": {"all_faces": true}}'

# Brackets, braces and commas of one row, and of what surrounds the rows, at most
SIGNS_OF_A_ROW = 8
SIGNS_AROUND = 64

# Of a request that is too large, this many times the limit is read and thrown away. A client that
# is cut off while it still sends would never see the 413.
DISCARDED = 8

RETRY_SECONDS = 1


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """Bytes and rows of a request, names of its switches, requests inside at once (running or
    waiting), and seconds that a request may take to arrive."""

    max_request_bytes: int
    max_items: int
    switches: Collection[str]
    max_inside: int
    arrival_seconds: float


class Refusal(Exception):
    """A response other than the model's: a status and one sentence."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}

    def response(self) -> Response:
        return Response(json.dumps({"error": str(self)}), self.status, self.headers, JSON)


class RequestGuard:
    """The ASGI endpoint of /invocations: it passes accepted requests to `predict`, reports every
    response to `on_response(status, seconds)`, and counts in `inside` the requests that run or
    wait."""

    def __init__(
        self,
        predict: Predict,
        settings: GuardSettings,
        on_response: Callable[[int, float], None],
    ) -> None:
        self._predict = predict
        self._settings = settings
        self._on_response = on_response
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        try:
            response = await self._response(Request(scope, receive))
        except Refusal as refusal:
            response = refusal.response()
        except ClientDisconnect:
            return

        self._on_response(response.status_code, time.monotonic() - started)
        await response(scope, receive, send)

    async def _response(self, request: Request) -> Response:
        if request.method != "POST":
            raise Refusal(405, "photos are sent with POST", {"allow": "POST"})

        with self._place():
            refuse_headers(request.headers)
            document = parsed(await self._body(request), self._settings)
            return Response(await self._predict(document), media_type=JSON)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of the `max_inside` places; 503 where all are taken."""
        if self.inside >= self._settings.max_inside:
            headers = {"retry-after": str(RETRY_SECONDS), "connection": "close"}
            raise Refusal(503, "too many requests wait here; try again in a moment", headers)

        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def _body(self, request: Request) -> bytes:
        seconds = self._settings.arrival_seconds
        try:
            return await asyncio.wait_for(self._received(request), seconds)
        except TimeoutError as error:
            raise Refusal(408, f"the request took longer than {seconds:g} s to arrive") from error

    async def _received(self, request: Request) -> bytes:
        """The complete body; at most `max_request_bytes` of it are held. The length is counted,
        because the header that gives it may be wrong."""
        limit = self._settings.max_request_bytes
        size = 0
        parts: list[bytes] = []
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                parts.append(part)
            else:
                parts.clear()
            if size > DISCARDED * limit:
                break

        if size > limit:
            sentence = f"the request is larger than the {limit} bytes allowed"
            raise Refusal(413, sentence, {"connection": "close"})
        return b"".join(parts)


def refuse_headers(headers: Mapping[str, str]) -> None:
    """415 for a body that is not plain JSON in UTF-8."""
    kind, _, rest = headers.get("content-type", "").lower().partition(";")
    if kind.strip() != JSON or rest.strip() not in ("", "charset=utf-8"):
        raise Refusal(415, f"send JSON, with the header Content-Type: {JSON}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "send the request uncompressed")


def parsed(body: bytes, settings: GuardSettings) -> Document:
    """The body as a JSON object with one table of rows and switches; 400 for anything else."""
    # Too many rows are refused before parsing: a few bytes a row would become a hundred times as
    # much memory. base64 holds no bracket, brace or comma, so their number bounds the rows, and
    # how deep they are nested.
    signs = sum(map(body.count, (b"[", b"{", b",")))
    if signs > SIGNS_OF_A_ROW * settings.max_items + SIGNS_AROUND:
        raise Refusal(
            400, f"more than the {settings.max_items} photos or faces allowed in a request"
        )

    # ValueError: not UTF-8, not JSON, or a number of thousands of digits
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the request is not valid JSON; send {FORM}") from error

    if not isinstance(document, dict) or not _has_one_table(document):
        raise Refusal(
            400, f"the request is not an object with one table of photos and params; send {FORM}"
        )
    _refuse_switches(document.get("params") or {}, settings)
    return document


def _has_one_table(document: Document) -> bool:
    tables = set(document) & set(FORMS)
    return len(tables) == 1 and set(document) <= {*tables, "params"}


def _refuse_switches(switches: Any, settings: GuardSettings) -> None:
    if not isinstance(switches, dict) or not all(
        type(value) is bool for value in switches.values()
    ):
        raise Refusal(400, "params is not an object of switches that are true or false")
    if unknown := sorted(set(switches) - set(settings.switches)):
        raise Refusal(
            400, f"params has {unknown[0][:40]!r}; it knows {', '.join(settings.switches)}"
        )
