"""Pictures of the project's own pages in a real browser -> docs/pictures/NAME.webp.

    python docs/make_screenshots.py [NAME ...]

It needs Debian's package `chromium` (or Google Chrome) and playwright (extra `dev`), which drives
it; playwright's own browsers are not used. Only drawn faces may be seen in a picture.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, sync_playwright

from visage.atomic import atomic_write_bytes
from visage.evaluation.drift import REFERENCE_FILE
from visage.server.application import build_app
from visage.server.limits import LIMITS
from visage.server.models import FolderSource
from visage.server.run import server_settings
from visage.synthetic import draw_face, sample_person, sample_photo

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
# The photo behind the button of the page of photos
SAMPLE = ROOT / "visage" / "server" / "pages" / "drawn-faces.jpg"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# CSS pixels of a laptop's window and of a phone's
DESKTOP = (1280, 800)
PHONE = (390, 844)
# Text stays readable and the file small
WEBP_QUALITY = 82

Scheme = Literal["light", "dark"]


def find_chromium() -> str | None:
    """The browser's program, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def chromium(arguments: Sequence[str] = ()) -> Iterator[Browser]:
    """A running headless browser. ValueError where none is installed."""
    program = find_chromium()
    if program is None:
        raise ValueError(f"none of {', '.join(PROGRAMS)} is installed; apt-get install chromium")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(arguments))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def window(
    browser: Browser,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: Scheme = "light",
    scale: float = 1.0,
) -> Iterator[Page]:
    """An empty tab of width and height `size` (CSS pixels), closed at the end; `scale` is the
    number of the screen's pixels in one of CSS."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        device_scale_factor=scale,
        reduced_motion="reduce",
        locale="en-GB",
    )
    try:
        yield context.new_page()
    finally:
        context.close()


def save(page: Page, file: Path, *, full_page: bool = False, most_px: int | None = None) -> None:
    """What the tab shows (or the page from top to bottom, cut off at `most_px` pixels of the
    screen) as a WebP file."""
    shot = page.screenshot(full_page=full_page, animations="disabled")
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    if most_px is not None:
        image = image.crop((0, 0, image.width, min(image.height, most_px)))

    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=WEBP_QUALITY, method=6)
    atomic_write_bytes(file, stream.getvalue())


def report(browser: Browser) -> None:
    """The first screen of the last evaluation's page; `make demo` makes one of drawn faces."""
    html = ROOT / "reports" / "report.html"
    if not html.is_file():
        raise ValueError(f"{html}: no such file; make demo writes it")

    with window(browser, size=(1280, 1000)) as page:
        page.goto(html.as_uri())
        save(page, PICTURES / "report.webp")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address (with a slash at the end) of a server that answers with the model in a folder,
    in a thread of this process."""
    source = FolderSource(folder=folder, name=folder.name, limits=LIMITS)
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
    try:
        yield f"http://{host}:{port}/"
    finally:
        server.should_exit = True
        thread.join()


def drawn_faces(people: Sequence[tuple[int, float]], px: int) -> bytes:
    """A JPEG of drawn faces side by side, each of a person's seed and an age in years."""
    picture = Image.new("RGB", (len(people) * px, px))
    for place, (seed, age_years) in enumerate(people):
        rng = np.random.default_rng(seed)
        face = sample_photo(sample_person(rng), rng, age_years=age_years, clean=True)
        picture.paste(Image.fromarray(draw_face(face, px)), (place * px, 0))

    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _file(name: str, content: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/jpeg", "buffer": content}


def photos(browser: Browser) -> None:
    """The page of photos: one photo with its face open, several on a phone in the dark. Writes the
    page's sample as well."""
    sample = drawn_faces(((8, 30.0), (19, 66.0)), 480)
    atomic_write_bytes(SAMPLE, sample)
    one = _file("drawn.jpg", drawn_faces(((11, 40.0),), 600))
    two = _file("drawn-faces.jpg", sample)

    with serving(_released()) as address:
        with window(browser, size=(1280, 1000)) as page:
            page.goto(address)
            page.set_input_files("#files", [one])
            page.locator(".score-pair").wait_for()
            save(page, PICTURES / "photos.webp", full_page=True, most_px=1190)
        with window(browser, size=PHONE, scheme="dark", scale=1.5) as page:
            page.goto(address)
            page.set_input_files("#files", [two])
            page.locator(".score-pair").wait_for()
            save(page, PICTURES / "photos-phone.webp", full_page=True, most_px=2250)


def monitor(browser: Browser) -> None:
    """The monitor of a server whose training and served faces are both drawn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tiny-utkface-all-ages"
        shutil.copytree(_released(), folder)

        with serving(folder) as address, window(browser) as page:
            _send(page, address, range(60))
            reference = page.request.get(f"{address}statistics").text()
            (folder / REFERENCE_FILE).write_text(reference, encoding="utf-8")

        with serving(folder) as address, window(browser) as page:
            _send(page, address, range(100, 140))
            page.request.post(f"{address}predict", multipart={"photo": _file("x.jpg", b"text")})
            page.goto(f"{address}monitor")
            page.locator(".measure").first.wait_for()
            save(page, PICTURES / "monitor.webp", full_page=True)


def _send(page: Page, address: str, seeds: Sequence[int]) -> None:
    """A photo of a drawn face for each seed."""
    for seed in seeds:
        photo = drawn_faces(((seed, 5.0 + seed * 7 % 75),), 240)
        page.request.post(f"{address}predict", multipart={"photo": _file("drawn.jpg", photo)})


def _released() -> Path:
    """The released model that the pictures show."""
    [config] = ROOT.glob("*/released/tiny-utkface-all-ages/config.json")
    return config.parent


# Name -> a function that draws docs/pictures/NAME*.webp
SCREENSHOTS: dict[str, Callable[[Browser], None]] = {
    "report": report,
    "photos": photos,
    "monitor": monitor,
}


def main() -> None:
    """The command line; exit status 2 and one line where there is no browser or no such name."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCREENSHOTS))
    names = parser.parse_args().names or list(SCREENSHOTS)

    try:
        if unknown := sorted(set(names) - set(SCREENSHOTS)):
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(SCREENSHOTS)}")
        with chromium() as browser:
            for name in names:
                SCREENSHOTS[name](browser)
    except ValueError as error:
        print(f"docs/make_screenshots.py: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
