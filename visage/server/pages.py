"""The files of the web pages: read once at the start, sent as they are.

`pages/` holds plain HTML, CSS, scripts and pictures. `index.html` answers GET /, `monitor.html` GET
/monitor, and every file GET /pages/NAME.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from visage.server.refusals import Refusal

FOLDER = Path(__file__).with_name("pages")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}


class Pages:
    """The files in a folder, by name."""

    def __init__(self, folder: Path = FOLDER) -> None:
        files = [file for file in sorted(folder.iterdir()) if file.suffix in TYPES]
        self._contents = {file.name: file.read_bytes() for file in files}

    def endpoint(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of one file."""

        async def endpoint(request: Request) -> Response:
            return self._response(name, request)

        return endpoint

    async def named(self, request: Request) -> Response:
        """The file that the address names."""
        return self._response(request.path_params["name"], request)

    def _response(self, name: str, request: Request) -> Response:
        if name not in self._contents:
            raise Refusal("page")
        content = self._contents[name]
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=TYPES[Path(name).suffix])
