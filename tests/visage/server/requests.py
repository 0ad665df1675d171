"""An application with a small model, photos for it, and requests in process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from visage.server.admission import AdmissionSettings
from visage.server.application import ServerSettings, build_app
from visage.server.limits import Limits
from visage.server.models import FolderSource, Source
from visage.synthetic import encode_face, sample_person, sample_photo

LIMITS = Limits(
    max_request_bytes=400_000,
    max_request_pixels=3_000_000,
    max_photos=8,
    max_photo_bytes=100_000,
    max_photo_pixels=1_000_000,
)
ADMISSION = AdmissionSettings(
    max_arriving=4,
    max_arriving_bytes=1_000_000,
    arrival_seconds=5.0,
    max_inside=6,
    max_inside_of_address=4,
)
JSON = {"Content-Type": "application/json"}
JPEG = {"Content-Type": "image/jpeg"}
HERE = ("127.0.0.1", 50_000)


def settings(**changes: Any) -> ServerSettings:
    """Two answers at once, a minute for each, no look at what the name means."""
    values: dict[str, Any] = {
        "num_at_once": 2,
        "answer_seconds": 60.0,
        "poll_seconds": 0.0,
        "admission": ADMISSION,
    }
    return ServerSettings(**(values | changes))


def application(folder: Path, **changes: Any) -> FastAPI:
    """The application that serves the model in `folder`."""
    return served(FolderSource(folder=folder, name="small", limits=LIMITS), **changes)


def served(source: Source, **changes: Any) -> FastAPI:
    """The application that serves a source's model."""
    return build_app(source, settings(**changes), "0")


def ask(
    app: Any,
    content: Any = None,
    method: str = "POST",
    path: str = "/invocations",
    headers: dict[str, str] = JSON,
    client: tuple[str, int] = HERE,
    **more: Any,
) -> httpx.Response:
    """One request; an exception of the application would come out here."""

    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as session:
            return await session.request(method, path, content=content, headers=headers, **more)

    return asyncio.run(once())


def drawn_photos(count: int, px: int = 160, seed: int = 0) -> list[bytes]:
    """Photos of one drawn face each, JPEG."""
    rng = np.random.default_rng(seed)
    drawn = [sample_photo(sample_person(rng), rng, clean=True) for _ in range(count)]
    return [encode_face(photo, px) for photo in drawn]


def encoded(pixels_HW3: np.ndarray, kind: str, **how: Any) -> bytes:
    """Pixels as a picture file."""
    stream = io.BytesIO()
    Image.fromarray(pixels_HW3).save(stream, kind, **how)
    return stream.getvalue()


def base64_of(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def rows(*photos: Any, **params: Any) -> str:
    """A body of /invocations."""
    records = [{"photo": photo} for photo in photos]
    return json.dumps({"dataframe_records": records, "params": params})


def assert_refused(response: httpx.Response, status: int | None = None) -> str:
    """A refusal whose document is one sentence that reveals nothing of the server."""
    if status is None:
        assert 400 <= response.status_code < 500, response.text
    else:
        assert response.status_code == status, response.text
    document = response.json()
    assert list(document) == ["error"]
    sentence: str = document["error"]
    assert 10 < len(sentence) < 400
    for detail in ("Traceback", "/site-packages", ".py", "object at 0x", "\n"):
        assert detail not in sentence
    return sentence
