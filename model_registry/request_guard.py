"""What stands before MLflow's scoring app: an ASGI layer that lets in what can be answered and
words every refusal.

Before a request is parsed its path, method, type and size are looked at, chunk by chunk, so that
nothing large is ever held; then its form, so that MLflow meets only what it can read. Every refusal
is a 4xx, or 503 where too many wait, and a JSON document {"error": one sentence}, without stack
traces, paths or the request's own data.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Page = Callable[[], tuple[bytes, str]]  # -> body, content type

FORMS = (
    "dataframe_records",
    "dataframe_split",
    "instances",
    "inputs",
)  # MLflow's names of one table of rows
FORM = '{"dataframe_records": [{"photo": "<base64>"}], "params": {"all_faces": true}}'
PASSED_ON = ("/ping", "/health", "/version")  # MLflow's own pages
SIGNS_OF_AN_ITEM, SIGNS_AROUND = (
    8,
    64,
)  # brackets, braces and commas that a row and its frame take at most
# Times the limit: what is read and thrown away of too large a request, so that its sender sees the
# 413
DISCARDED = 8
RETRY_SECONDS = 1
UNFORESEEN = "Encountered an unexpected error"  # MLflow calls a failure of the model a bad request
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """Bytes and items of a request, names of its switches, requests inside at once (answered or
    waiting), and seconds that a request may take to arrive."""

    max_request_bytes: int
    max_items: int
    switches: Collection[str]
    max_inside: int
    arrival_seconds: float


class Refusal(Exception):
    """An answer other than the model's."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}


class Gone(Exception):
    """The sender left before the request was here."""


class Guard:
    """`app` behind the guard. `pages` are further documents to GET; `seen(status, seconds)` hears
    of every answer; `inside` counts the requests that are answered or waiting."""

    def __init__(
        self,
        app: App,
        settings: GuardSettings,
        pages: dict[str, Page],
        seen: Callable[[int, float], None],
    ) -> None:
        self._app, self._settings, self._pages, self._seen = app, settings, pages, seen
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        elif scope["path"] == "/invocations":
            await self._invocations(scope, receive, send)
        else:
            await self._page(scope, receive, send)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = scope["path"] in self._pages or scope["path"] in PASSED_ON
        if not known:
            await _respond(
                send,
                *_worded(Refusal(404, "there is no such page; photos go to POST /invocations")),
            )
        elif scope["method"] not in ("GET", "HEAD"):
            await _respond(
                send, *_worded(Refusal(405, "this page is only read", {"allow": "GET, HEAD"}))
            )
        elif scope["path"] in self._pages:
            body, content_type = self._pages[scope["path"]]()
            await _respond(send, 200, body, {"content-type": content_type})
        else:
            await self._app(scope, receive, send)

    async def _invocations(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        try:
            status, body, headers = await self._answer(scope, receive)
        except Refusal as refusal:
            status, body, headers = _worded(refusal)
        except Gone:
            return
        self._seen(status, time.monotonic() - started)
        await _respond(send, status, body, headers)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes, dict[str, str]]:
        if scope["method"] != "POST":
            raise Refusal(405, "photos are sent with POST", {"allow": "POST"})
        if self.inside >= self._settings.max_inside:
            wait = {"retry-after": str(RETRY_SECONDS), "connection": "close"}
            raise Refusal(503, "too many requests wait here; try again in a moment", wait)
        self.inside += 1
        try:
            refuse_headers({name.lower(): value for name, value in scope["headers"]})
            seconds = self._settings.arrival_seconds
            try:
                body = await asyncio.wait_for(self._body(receive), seconds)
            except TimeoutError as error:
                raise Refusal(
                    408, f"the request took longer than {seconds:g} s to arrive"
                ) from error
            refuse_form(body, self._settings)
            return await ask(self._app, scope, body)
        finally:
            self.inside -= 1

    async def _body(self, receive: Receive) -> bytes:
        """The whole body, never holding more than the limit; the length that a header claims is not
        believed."""
        limit, size, parts = self._settings.max_request_bytes, 0, []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            size += len(message.get("body", b""))
            if size <= limit:
                parts.append(message.get("body", b""))
            else:
                parts.clear()
            if size > DISCARDED * limit or not message.get("more_body", False):
                break
        if size > limit:
            raise Refusal(
                413,
                f"the request is larger than the {limit} bytes allowed",
                {"connection": "close"},
            )
        return b"".join(parts)


def refuse_headers(headers: dict[bytes, bytes]) -> None:
    """415 for a body that is not plain JSON in UTF-8."""
    kind, _, rest = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
    if kind.strip() != "application/json" or rest.strip() not in ("", "charset=utf-8"):
        raise Refusal(415, "send JSON, with the header Content-Type: application/json")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refusal(415, "send the request uncompressed")


def refuse_form(body: bytes, settings: GuardSettings) -> None:
    """400 for what is not a JSON object with one table of rows and switches; too many rows are seen
    before parsing.

    base64 holds neither brackets nor braces nor commas, so their number bounds the rows, and how
    deep they are nested.
    """
    too_many = Refusal(
        400, f"more than the {settings.max_items} photos or faces allowed in a request"
    )
    if (
        sum(map(body.count, (b"[", b"{", b",")))
        > SIGNS_OF_AN_ITEM * settings.max_items + SIGNS_AROUND
    ):
        raise too_many
    try:
        document = json.loads(body.decode("utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # not UTF-8, not JSON, a number of thousands of digits, too deep
        raise Refusal(400, f"the request is not valid JSON; send {FORM}") from error
    if (
        not isinstance(document, dict)
        or len(set(document) & set(FORMS)) != 1
        or set(document) - {*FORMS, "params"}
    ):
        raise Refusal(
            400, f"the request is not an object with one table of photos and params; send {FORM}"
        )
    switches = document.get("params") or {}
    if not isinstance(switches, dict) or any(
        type(value) is not bool for value in switches.values()
    ):
        raise Refusal(400, "params is not an object of switches that are true or false")
    if unknown := sorted(set(switches) - set(settings.switches)):
        raise Refusal(
            400, f"params has {unknown[0][:40]!r}; it knows {', '.join(settings.switches)}"
        )


async def ask(app: App, scope: Scope, body: bytes) -> tuple[int, bytes, dict[str, str]]:
    """MLflow's answer to a request that is here: status, body, headers; its refusals and failures
    in our words."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]
    status, parts = 500, []
    scope = {
        **scope,
        "headers": [(b"content-type", b"application/json")],
    }  # the one spelling that MLflow knows

    async def receive() -> MutableMapping[str, Any]:
        if unread:
            return unread.pop()
        return await asyncio.Future()  # the sender stays until the answer is there

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    try:
        await app(scope, receive, send)
    except UnicodeError as error:  # half of a surrogate pair is valid JSON
        raise Refusal(400, "the request holds text that is not Unicode") from error
    except (
        Exception
    ):  # whatever the app did not foresee is a failure of this server, told without its inside
        _log.exception("a request failed")
        status = 500
    if status < 400:
        return status, b"".join(parts), {"content-type": "application/json"}
    raise refusal_of(status, b"".join(parts))


def refusal_of(status: int, answer: bytes) -> Refusal:
    """MLflow's error document, which also holds the request's data and stack traces, without these."""
    if status == 504:
        return Refusal(504, "the request took too long")
    try:
        document = json.loads(answer)
        message, trace = str(document["message"]), document.get("stack_trace")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, trace = "", None
    if status >= 500 or message.startswith(UNFORESEEN):
        _log.error("a request failed\n%s", trace or "")
        return Refusal(500, "the server failed at this request; its log says why")
    _, found, reason = message.rpartition("Error: ")
    return Refusal(status, reason[:300] if found else f"the rows cannot be read; send {FORM}")


def _worded(refusal: Refusal) -> tuple[int, bytes, dict[str, str]]:
    body = json.dumps({"error": str(refusal)}).encode()
    return refusal.status, body, {"content-type": "application/json", **refusal.headers}


async def _respond(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
