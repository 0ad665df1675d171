"""The server in a thread, one browser for all tests, and for each test a tab that watches what it
asks for and what it reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page

from docs.make_screenshots import chromium, find_chromium, window
from tests.visage.server.pages.tab import FAKE_CAMERA, watched
from visage.server.application import build_app
from visage.server.limits import LIMITS
from visage.server.models import FolderSource
from visage.server.run import server_settings


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Where the application listens, with a slash at the end."""
    source = FolderSource(folder=folder, name="small", limits=LIMITS)
    app = build_app(source, server_settings(num_at_once=2, poll_seconds=0.0), "0")
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, ws="none", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server has ended"
        time.sleep(0.02)

    host, port = server.servers[0].sockets[0].getsockname()[:2]
    yield f"http://{host}:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium with a camera that shows a test picture and asks nobody. It ends with each module:
    while it runs, no other test could run an event loop in this thread."""
    if find_chromium() is None:
        pytest.skip("no chromium on the path (apt-get install chromium)")
    with chromium(FAKE_CAMERA) as started:
        yield started


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A tab of a laptop's size. At the end: it asked no other host, broke no rule of the
    Content-Security-Policy, and no script failed."""
    with window(browser) as tab, watched(tab, address):
        yield tab
