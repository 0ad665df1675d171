"""What the tests of the pages do in a tab: open, add photos, and check what it asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import ConsoleMessage, Error, FilePayload, Page, Request

from visage.synthetic import draw_face, sample_person, sample_photo

FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
# What a page makes itself, without a host
OWN_SCHEMES = ("blob:", "data:")
FACES_PX = 240


@contextmanager
def watched(page: Page, address: str) -> Iterator[None]:
    """Fails at the end where the tab asked another host, broke the policy or had an error."""
    foreign: list[str] = []
    errors: list[str] = []

    def on_request(request: Request) -> None:
        if not request.url.startswith((address, *OWN_SCHEMES)):
            foreign.append(request.url)

    def on_console(message: ConsoleMessage) -> None:
        # A refused photo stands in the console too; the page shows the server's sentence
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            errors.append(message.text)

    def on_error(error: Error) -> None:
        errors.append(str(error))

    page.on("request", on_request)
    page.on("console", on_console)
    page.on("pageerror", on_error)
    yield
    assert not foreign
    assert not errors


def open_photos(page: Page, address: str) -> None:
    """The page of photos, with its model's card."""
    page.goto(address)
    page.wait_for_selector(".model-card")


def photo(num_faces: int = 1, name: str = "drawn.png", **how: object) -> FilePayload:
    """A file with drawn faces side by side, without loss; `how`: for Pillow."""
    stream = io.BytesIO()
    drawn_faces(num_faces).save(stream, "PNG", **how)
    return {"name": name, "mimeType": "image/png", "buffer": stream.getvalue()}


def drawn_faces(num_faces: int) -> Image.Image:
    """Drawn faces side by side, each FACES_PX wide."""
    picture = Image.new("RGB", (num_faces * FACES_PX, FACES_PX))
    for place in range(num_faces):
        rng = np.random.default_rng(11 + place)
        face = sample_photo(sample_person(rng), rng, age_years=30.0 + 20 * place, clean=True)
        picture.paste(Image.fromarray(draw_face(face, FACES_PX)), (place * FACES_PX, 0))
    return picture


def add(page: Page, *files: FilePayload) -> None:
    """Chooses files and waits until each has been answered."""
    page.set_input_files("#files", list(files))
    answered(page, len(files))


def answered(page: Page, count: int) -> None:
    """Waits until there are `count` cards and none waits for the server."""
    page.locator(".card").nth(count - 1).wait_for()
    page.locator(".state.busy").first.wait_for(state="detached")


def accessibility_faults(page: Page) -> Sequence[str]:
    """What axe-core finds against WCAG, a line each; nothing where all is well."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:120]}" for each in found]
