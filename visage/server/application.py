"""The HTTP application: which address answers what.

Each prediction runs on one thread, as many at once as `num_at_once`: many clients then share the
cores without thrashing, and a single client loses little (bench/serving.py). Requests of several
clients are not joined into batches: measured, it gains too little. Everything that is refused has
a kind in `visage.server.refusals`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visage.server import forms, tables
from visage.server.admission import AdmissionSettings, Arrivals, Places
from visage.server.answers import Item
from visage.server.documentation import DESCRIPTION, ROUTES, docs_page
from visage.server.metrics import Metrics
from visage.server.models import Holder, Loaded, Source, model_document, ready_document
from visage.server.pages import Pages
from visage.server.refusals import Refusal, seen
from visage.server.score_maps import as_png, corners_in_photo
from visage.server.statistics import Statistics
from visage.server.tables import JSON, PHOTO, Document

# Nothing but what this server itself sends: no other host, no inline script, no frame around it.
# blob: and data: are pictures that a page makes of the photo chosen in it.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob: mediastream:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# Registries are asked by many pages, and answer slowly
REGISTRY_SECONDS = 30.0

Answer = Callable[[Loaded, bytes], list[Document]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How many requests are answered at once, seconds that an answer may take, seconds between two
    looks at what the model's name means (0 for none), and who may come in."""

    num_at_once: int
    answer_seconds: float
    poll_seconds: float
    admission: AdmissionSettings


class Service:
    """One server's model, its places and its counts."""

    def __init__(self, source: Source, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.statistics = Statistics()
        self.arrivals = Arrivals(settings.admission)
        self.places = Places(settings.admission)
        self.holder = Holder(source, self._begin)
        self.executor = ThreadPoolExecutor(settings.num_at_once, "predict")
        self._registry: tuple[float, dict[str, Any] | None] | None = None
        self.metrics.watch(
            "requests_inside", "requests running or waiting now", lambda: len(self.places)
        )
        self.metrics.watch(
            "requests_arriving", "requests that have not fully arrived", lambda: len(self.arrivals)
        )

    def _begin(self, model: Loaded) -> None:
        self.metrics.begin(model)
        self.statistics.begin()

    async def respond(
        self, request: Request, check: Callable[[Mapping[str, str]], None], answer: Answer
    ) -> Response:
        """A request for predictions: its headers are checked, its body is read, and `answer` makes
        documents of it in a thread."""
        started = time.monotonic()
        refusal = None
        try:
            response = await self._predictions(request, check, answer)
        except Refusal as error:
            refusal = error.name
            response = refused(error)
        except ClientDisconnect:
            return Response(status_code=400)

        self.count_response(response.status_code, time.monotonic() - started, refusal)
        return response

    def count_response(self, status: int, seconds: float, refusal: str | None) -> None:
        """One response to a request for predictions."""
        self.metrics.count_response(status, seconds, refusal)
        self.statistics.count_response(status, seconds, refusal)

    async def _predictions(
        self, request: Request, check: Callable[[Mapping[str, str]], None], answer: Answer
    ) -> Response:
        address = _address(request)
        self.places.check(address)
        check(request.headers)
        limit = self.holder.current.answers.limits.max_request_bytes
        body = await self.arrivals.body(request.stream(), address, limit)

        def work() -> tuple[list[Document], bytes]:
            # The model of this moment: another may take its place while this one answers.
            documents = answer(self.holder.current, body)
            text = json.dumps({"predictions": documents}, allow_nan=False)
            return documents, text.encode()

        documents, text = await self._in_a_thread(address, work)
        self.metrics.count_documents(documents)
        self.statistics.count_documents(documents)
        return Response(text, media_type=JSON)

    async def _in_a_thread(
        self, address: str, work: Callable[[], tuple[list[Document], bytes]]
    ) -> tuple[list[Document], bytes]:
        """`work` in one of the threads that predict; its place is held until it has ended, even
        where nobody waits for it any more."""
        self.places.take(address)
        loop = asyncio.get_running_loop()
        future = self.executor.submit(work)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self.places.leave, address))
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError as error:
            future.cancel()
            raise Refusal("too_long") from error
        except Refusal:
            raise
        except Exception as error:
            # Whatever nobody foresaw is a failure of this server: the log says why, the client does
            # not learn it.
            _log.exception("a request failed")
            raise Refusal("failure") from error

    async def reload(self, request: Request) -> Response:
        """Takes over what the model's name means now, where the server's own machine asks."""
        if not _is_from_here(request):
            raise Refusal("not_here")
        changed = await self.take_over()
        return as_json(ready_document(self.holder.current) | {"changed": changed})

    async def take_over(self) -> bool:
        """Whether another model answers from now on; a Refusal where it cannot be loaded."""
        try:
            changed = await asyncio.to_thread(self.holder.refresh)
        except Exception as error:
            # A registry, a file system and a damaged model raise nearly anything; the present model
            # goes on.
            _log.error("the model cannot be taken over: %s", error)
            self.metrics.count_reload("failed")
            raise Refusal("reload_failed") from error
        if changed:
            self._registry = None
            self.metrics.count_reload("taken over")
        return changed

    async def watch(self) -> None:
        """Looks every `poll_seconds` at what the model's name means; never ends."""
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            with contextlib.suppress(Refusal):
                await self.take_over()

    async def statistics_document(self) -> dict[str, Any]:
        """What GET /statistics says."""
        gauges = {
            "inside": len(self.places),
            "arriving": len(self.arrivals),
            "at_once": self.settings.num_at_once,
        }
        registry = await asyncio.to_thread(self._registry_now)
        return self.statistics.document(self.holder.current, gauges, registry)

    def _registry_now(self) -> dict[str, Any] | None:
        """Champion and challengers, at most REGISTRY_SECONDS old."""
        now = time.monotonic()
        if self._registry is None or now - self._registry[0] > REGISTRY_SECONDS:
            try:
                self._registry = (now, self.holder.source.registry())
            except Exception as error:  # as in `take_over`
                _log.error("the registry does not answer: %s", error)
                self._registry = (now, None)
        return self._registry[1]


def invocations(model: Loaded, body: bytes) -> list[Document]:
    """The documents of a body of POST /invocations, with the model's version."""
    answers = model.answers
    rows, switches = tables.parsed(body, answers.limits.max_photos)
    documents = answers.answer(answers.items_of_rows(rows), **switches)
    for document in documents:
        document["model"]["version"] = model.version
    return documents


def predict(query: list[tuple[str, str]], content_type: str) -> Answer:
    """The answer of POST /predict with these switches and this type of body."""
    switches = {"all_faces": True, "flip": True, "explain": False, "distribution": True}
    where = "the address"
    tables.check_switches([name for name, _ in query], where, forms.SWITCHES)
    for name, text in query:
        value = tables.switch_value(text)
        if value is None:
            raise Refusal("switch_value", where=where, name=name, seen=seen(text))
        switches[name] = value
    with_distribution = switches.pop("distribution")

    def answer(model: Loaded, body: bytes) -> list[Document]:
        limits = model.answers.limits
        pictures = forms.pictures_of(body, content_type, limits.max_photos, limits.max_photo_bytes)
        items = [Item(PHOTO, picture) for picture in pictures]
        documents = model.answers.answer(items, **switches)
        faces = [face for document in documents for face in document["faces"]]
        for face in faces:
            if switches["explain"]:
                how = model.config.alignment
                face["score_map"] = as_png(face["score_map"], how.crop_px)
                face["score_map_corners"] = corners_in_photo(face["landmarks"], how)
            if not with_distribution:
                del face["probabilities"]
        return documents

    return answer


def build_app(source: Source, settings: ServerSettings, version: str) -> FastAPI:
    """The application that answers with the source's model; `version` is what /version says.

    Raises ValueError where the model cannot be loaded.
    """
    service = Service(source, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = None
        if settings.poll_seconds > 0:
            watching = asyncio.create_task(service.watch())
        yield
        if watching is not None:
            watching.cancel()
        service.executor.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="visage",
        version=version,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    _add_routes(app, service, version)
    _add_refusals(app, service)
    app.add_middleware(SafeHeaders)
    return app


def _add_routes(app: FastAPI, service: Service, version: str) -> None:
    """Every address; what `ROUTES` says of it stands in /openapi.json and in /docs."""
    pages = Pages()

    async def post_predict(request: Request) -> Response:
        async def respond() -> Response:
            content_type = request.headers.get("content-type", "")
            try:
                answer = predict(request.query_params.multi_items(), content_type)
            except Refusal as error:
                service.count_response(error.status, 0.0, error.name)
                return refused(error)
            return await service.respond(request, forms.check_predict_type, answer)

        return await respond()

    async def post_invocations(request: Request) -> Response:
        return await service.respond(request, tables.check_json_type, invocations)

    async def statistics(_: Request) -> Response:
        return as_json(await service.statistics_document())

    def read(make: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(_: Request) -> Response:
            return make()

        return endpoint

    endpoints: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "POST /predict": post_predict,
        "POST /invocations": post_invocations,
        "POST /reload": service.reload,
        "GET /": pages.endpoint("index.html"),
        "GET /monitor": pages.endpoint("monitor.html"),
        "GET /docs": read(lambda: docs_page(app.openapi())),
        "GET /pages/{name}": pages.named,
        "GET /model": read(lambda: as_json(model_document(service.holder.current))),
        "GET /ready": read(lambda: as_json(ready_document(service.holder.current))),
        "GET /statistics": statistics,
        "GET /metrics": read(
            lambda: Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)
        ),
        "GET /ping": read(lambda: Response("\n", media_type=JSON)),
        "GET /health": read(lambda: Response("\n", media_type=JSON)),
        "GET /version": read(lambda: Response(version, media_type="text/plain")),
    }
    for route, endpoint in endpoints.items():
        method, _, path = route.partition(" ")
        said = ROUTES.get(route)
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_class=Response,
            include_in_schema=said is not None,
            **(said or {}),
        )


def _add_refusals(app: FastAPI, service: Service) -> None:
    """One sentence for everything that no route answers."""
    photos = ("/predict", "/invocations")

    async def refuse(request: Request, error: Exception) -> Response:
        path = request.url.path
        if not (isinstance(error, HTTPException) and error.status_code == 405):
            return refused(Refusal("page"))
        if path in photos:
            refusal = Refusal("method_photos")
            service.count_response(refusal.status, 0.0, refusal.name)
            return refused(refusal)
        return refused(Refusal("method_reload" if path == "/reload" else "method_page"))

    async def sentence(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return refused(error)

    async def failure(_: Request, __: Exception) -> Response:
        return refused(Refusal("failure"))

    app.add_exception_handler(404, refuse)
    app.add_exception_handler(405, refuse)
    app.add_exception_handler(Refusal, sentence)
    app.add_exception_handler(Exception, failure)


class SafeHeaders:
    """Adds HEADERS to every response, and answers HEAD as GET (the server leaves the body out)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name.lower() for name, _ in message["headers"]}
                for name, value in HEADERS.items():
                    if name.encode() not in named:
                        message["headers"].append((name.encode(), value.encode()))
            await send(message)

        await self._app(scope, receive, send_safely)


def as_json(document: Any) -> Response:
    """Plain values as a response."""
    return Response(json.dumps(document, allow_nan=False), media_type=JSON)


def refused(refusal: Refusal) -> Response:
    """A refusal as a response: {"error": sentence}."""
    text = json.dumps({"error": str(refusal)})
    return Response(text, refusal.status, refusal.headers, JSON)


def _address(request: Request) -> str:
    """The client's; of IPv6 the network of 64 bits, which one customer has."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))
    return host


def _is_from_here(request: Request) -> bool:
    """Whether a program on this machine asks, and not the page of another site in a browser."""
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    if not (address.is_loopback or (mapped is not None and mapped.is_loopback)):
        return False
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
