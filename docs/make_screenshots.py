"""Pictures of the project's own pages in a real browser -> docs/pictures/NAME.webp.

    python docs/make_screenshots.py [NAME ...]

needs Debian's package `chromium` (or Google Chrome) and playwright (extra `dev`), which drives it;
playwright's own browsers are not used. Only drawn faces may be seen in a picture.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from visage.atomic import atomic_write_bytes

PICTURES = Path(__file__).resolve().parent / "pictures"
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
    html = PICTURES.parents[1] / "reports" / "report.html"
    if not html.is_file():
        raise ValueError(f"{html}: no such file; make demo writes it")

    with window(browser, size=(1280, 1000)) as page:
        page.goto(html.as_uri())
        save(page, PICTURES / "report.webp")


# Name -> a function that draws docs/pictures/NAME*.webp
SCREENSHOTS: dict[str, Callable[[Browser], None]] = {"report": report}


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
