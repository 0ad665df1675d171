"""The server in a thread, one browser for all tests, and for each test a tab that watches what it
asks for and what it reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from docs.make_screenshots import chromium, find_chromium, serving, window
from tests.visage.server.pages.tab import FAKE_CAMERA, watched


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Where the application listens, with a slash at the end."""
    with serving(folder) as where:
        yield where


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
