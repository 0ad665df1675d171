"""GET / in a real browser: how photos come in, what is shown of them, with mouse, keyboard and
screen reader, on a laptop and on a phone."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from docs.make_screenshots import PHONE, window
from tests.visage.server.pages.tab import (
    FACES_PX,
    accessibility_faults,
    add,
    answered,
    drawn_faces,
    open_photos,
    photo,
    watched,
)

# The narrowest phone still sold, in CSS pixels
NARROW = (320, 640)
LEAST_TARGET_PX = 24  # WCAG 2.2, 2.5.8
ORIENTATION = 0x0112
ROTATED = 6  # turn by 90 degrees clockwise to see it upright


def test_an_uploaded_photo_shows_box_value_and_interval(page: Page, address: str) -> None:
    open_photos(page, address)
    with page.expect_response("**/predict?*") as response:
        add(page, photo())

    [document] = response.value.json()["predictions"]
    [face] = document["faces"]
    value = f"{face['value']:.1f}"
    interval = f"{face['low']:.0f} to {face['high']:.0f}"
    expect(page.locator(".box")).to_have_count(1)
    expect(page.locator(".tag")).to_have_text(f"{value}{interval}")
    expect(page.locator(".face .value").first).to_have_text(value)
    expect(page.locator(".face .range")).to_contain_text(interval)

    box = page.locator(".box").bounding_box()
    picture = page.locator(".picture").bounding_box()
    assert box is not None
    assert picture is not None
    x0, y0, x1, y1 = face["box"]
    scale = picture["width"] / FACES_PX
    assert box["x"] - picture["x"] == pytest.approx(x0 * scale, abs=1.5)
    assert box["y"] - picture["y"] == pytest.approx(y0 * scale, abs=1.5)
    assert box["width"] == pytest.approx((x1 - x0) * scale, abs=1.5)
    assert box["height"] == pytest.approx((y1 - y0) * scale, abs=1.5)


def test_an_open_face_shows_its_curve_and_its_score_map(page: Page, address: str) -> None:
    open_photos(page, address)
    add(page, photo(2))

    first = page.locator(".panel").first
    expect(first.locator(".curve")).to_be_visible()
    expect(first.locator(".curve")).to_have_attribute(
        "aria-label",
        re.compile(r"^Distribution of age: the estimate is [\d.]+ years, .* 80 % interval \d+ to "),
    )
    expect(first.locator(".score-pair canvas")).to_have_count(2)

    second = page.locator(".panel").nth(1)
    expect(second).to_be_hidden()
    page.locator(".box").nth(1).click()
    expect(second.locator(".curve")).to_be_visible()
    page.locator(".face").nth(1).click()
    expect(second).to_be_hidden()


def test_two_faces_are_numbered_largest_first(page: Page, address: str) -> None:
    open_photos(page, address)
    add(page, photo(2))

    expect(page.locator(".box")).to_have_count(2)
    expect(page.locator(".tag-number")).to_have_text(["1", "2"])
    expect(page.locator(".badge")).to_have_text(["1", "2"])


def test_photos_stand_side_by_side(page: Page, address: str) -> None:
    open_photos(page, address)
    add(page, photo(name="a.png"), photo(2, name="b.png"))

    left = page.locator(".card").nth(0).bounding_box()
    right = page.locator(".card").nth(1).bounding_box()
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    expect(page.locator("#results-title")).to_have_text("2 photos")

    page.locator("#clear").click()
    expect(page.locator(".card")).to_have_count(0)


def test_a_photo_is_pasted(page: Page, address: str) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_photos(page, address)
    picture = base64.b64encode(photo()["buffer"]).decode()
    page.evaluate(
        """async (text) => {
          const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
          const blob = new Blob([bytes], { type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        picture,
    )
    page.keyboard.press("Control+V")

    answered(page, 1)
    expect(page.locator(".box")).to_have_count(1)


def test_a_photo_is_dropped(page: Page, address: str) -> None:
    open_photos(page, address)
    transfer = page.evaluate_handle(
        """(text) => {
          const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
          return transfer;
        }""",
        base64.b64encode(photo()["buffer"]).decode(),
    )
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_have_class(re.compile("over"))
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})

    answered(page, 1)
    expect(page.locator("#drop")).not_to_have_class(re.compile("over"))
    expect(page.locator(".card h3")).to_have_text("dropped.png")


def test_the_camera_takes_a_photo_and_is_let_go(page: Page, address: str) -> None:
    open_photos(page, address)
    page.locator("#camera").click()
    page.locator("#camera-take").click()  # waits until the camera shows something

    answered(page, 1)
    expect(page.locator("#camera-dialog")).to_be_hidden()
    # The test picture of Chromium's fake camera is no face
    expect(page.locator(".state")).to_have_text("No face found.")
    assert page.evaluate("document.getElementById('camera-view').srcObject") is None


def test_a_refused_camera_says_so(page: Page, address: str) -> None:
    page.add_init_script(
        "navigator.mediaDevices.getUserMedia = () => "
        "Promise.reject(new DOMException('', 'NotAllowedError'))"
    )
    open_photos(page, address)
    page.locator("#camera").click()

    expect(page.locator("#camera-state")).to_have_text(re.compile("not allowed"))
    expect(page.locator("#camera-take")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.locator("#camera-dialog")).to_be_hidden()


def test_the_keyboard_reaches_everything(page: Page, address: str) -> None:
    open_photos(page, address)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    add(page, photo(2))

    page.locator("#files").focus()
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className"))
    assert [name for name in reached if name == "face"] == ["face", "face"]

    page.locator(".face").nth(1).focus()
    expect(page.locator(".box").nth(1)).to_have_class(re.compile("pointed"))
    page.keyboard.press("Enter")
    expect(page.locator(".face").nth(1)).to_have_attribute("aria-expanded", "true")
    expect(page.locator(".panel").nth(1)).to_be_visible()
    page.keyboard.press("Space")
    expect(page.locator(".panel").nth(1)).to_be_hidden()

    page.locator(".icon-button").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#files")).to_be_focused()


def test_a_screen_reader_hears_what_was_found(page: Page, address: str) -> None:
    open_photos(page, address)
    add(page, photo(2))

    said = r"drawn\.png: 2 faces\. face 1: [\d.]+ years, 80 % interval \d+ to \d+; face 2: "
    expect(page.get_by_role("status").first).to_contain_text(re.compile(said))
    name = re.compile(r"^Face 2: [\d.]+ years 80 % interval \d+ to \d+$")
    expect(page.get_by_role("button", name=name)).to_have_count(1)
    expect(page.get_by_role("article", name="drawn.png")).to_be_visible()
    expect(page.get_by_role("button", name="Remove drawn.png")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_fault_against_the_rules_of_accessibility(
    browser: Browser, address: str, scheme: str
) -> None:
    with window(browser, scheme="dark" if scheme == "dark" else "light") as page:
        open_photos(page, address)
        assert accessibility_faults(page) == []

        broken = photo()
        broken["buffer"] = b"text"
        add(page, photo(2), broken)
        page.locator(".face").first.click()
        page.locator(".score-pair").wait_for()
        assert accessibility_faults(page) == []


def test_a_refused_photo_shows_the_servers_sentence(page: Page, address: str) -> None:
    open_photos(page, address)
    broken = photo(name="<img src=x onerror=alert(1)>.png")
    broken["buffer"] = b"this is no picture"
    with page.expect_response("**/predict?*") as response:
        add(page, broken, photo())

    said = response.value.json()["error"].removeprefix("item 0: ")
    expect(page.locator(".state.error")).to_have_text(re.compile(re.escape(said), re.IGNORECASE))
    # A name is text, whatever is written in it; and the other photo is answered
    expect(page.locator(".card h3").first).to_have_text("<img src=x onerror=alert(1)>.png")
    expect(page.locator(".box")).to_have_count(1)


def test_a_busy_server_is_asked_again(page: Page, address: str) -> None:
    refusals = []

    def busy_once(route: Route) -> None:
        if refusals:
            route.continue_()
            return
        refusals.append(1)
        route.fulfill(status=503, json={"error": "busy"}, headers={"retry-after": "1"})

    page.route("**/predict?*", busy_once)
    open_photos(page, address)
    add(page, photo())
    expect(page.locator(".box")).to_have_count(1)


def test_a_server_that_is_gone_is_asked_again_by_hand(page: Page, address: str) -> None:
    open_photos(page, address)
    page.route("**/predict?*", lambda route: route.abort())
    add(page, photo())
    expect(page.locator(".state.error")).to_contain_text("The server does not answer.")

    page.unroute("**/predict?*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".box")).to_have_count(1)


def test_a_turned_photo_is_shown_as_the_server_sees_it(page: Page, address: str) -> None:
    upright = drawn_faces(2)
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED
    turned = photo(2, name="turned.jpg")
    turned["mimeType"] = "image/jpeg"
    turned["buffer"] = _jpeg(upright.rotate(90, expand=True), exif)

    open_photos(page, address)
    add(page, turned)
    size = page.evaluate(
        "(({ naturalWidth, naturalHeight }) => [naturalWidth, naturalHeight])"
        "(document.querySelector('.picture'))"
    )
    assert tuple(size) == upright.size
    expect(page.locator(".card .small").first).to_have_text(f"{size[0]} × {size[1]} px")
    lefts = page.locator(".box").evaluate_all("boxes => boxes.map((box) => box.style.left)")
    assert sorted(float(left.rstrip("%")) // 50 for left in lefts) == [0, 1]


def test_the_score_map_lies_on_the_face_of_a_turned_photo(page: Page, address: str) -> None:
    """The crop that the page draws is the same for a photo and for the same photo turned."""
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED
    upright = photo(name="upright.jpg")
    upright["buffer"] = _jpeg(drawn_faces(1), Image.Exif())
    turned = photo(name="turned.jpg")
    turned["buffer"] = _jpeg(drawn_faces(1).rotate(90, expand=True), exif)

    open_photos(page, address)
    add(page, upright, turned)
    for place in range(2):
        page.locator(".face").nth(place).click()
    expect(page.locator(".score-pair")).to_have_count(2)
    first, second = page.locator(".score-pair canvas:first-child").evaluate_all(
        "(faces) => faces.map((face) => [...face.getContext('2d')"
        ".getImageData(0, 0, face.width, face.height).data])"
    )
    differences = [abs(a - b) for a, b in zip(first, second, strict=True)]
    assert sum(differences) / len(differences) < 4
    assert max(first[0::4]) - min(first[0::4]) > 50  # a face, and not an empty picture


def _jpeg(picture: Image.Image, exif: Image.Exif) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


def test_a_photo_that_only_the_server_reads_keeps_its_boxes(page: Page, address: str) -> None:
    """As HEIC in most browsers: here the picture is kept from the browser."""
    page.add_init_script(
        "const make = URL.createObjectURL;"
        "URL.createObjectURL = (file) => file instanceof File ? 'data:image/png,' : make(file);"
    )
    open_photos(page, address)
    add(page, photo())

    expect(page.locator(".frame")).to_contain_text("This browser cannot show the photo.")
    frame = page.locator(".frame").bounding_box()
    assert frame is not None
    assert frame["width"] == pytest.approx(frame["height"], rel=0.02)
    expect(page.locator(".box")).to_be_visible()
    expect(page.locator(".score-pair canvas")).to_have_count(1)


def test_without_score_maps_a_sentence_says_why(page: Page, address: str) -> None:
    def without(route: Route) -> None:
        document = route.fetch().json()
        route.fulfill(json=document | {"explain": False, "explain_reason": "it needs PyTorch"})

    page.route("**/model", without)
    open_photos(page, address)
    add(page, photo())

    expect(page.locator(".score")).to_have_text("This server draws no score map. It needs PyTorch.")
    expect(page.locator(".score-pair")).to_have_count(0)


def test_the_card_says_limits_and_terms(page: Page, address: str) -> None:
    open_photos(page, address)
    card = page.locator(".model-card")
    for heading in ("Limits", "Terms"):
        expect(card.get_by_role("heading", name=heading)).to_be_visible()
    expect(page.locator(".fair")).to_contain_text("must not decide by itself")


@pytest.mark.parametrize("size", [PHONE, NARROW])
def test_a_phone_shows_it_without_scrolling_sideways(
    browser: Browser, address: str, size: tuple[int, int]
) -> None:
    with window(browser, size=size) as page, watched(page, address):
        open_photos(page, address)
        add(page, photo(2, name=f"{'a name much longer than a phone is wide ' * 2}.png"))
        page.locator(".score-pair").wait_for()

        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
        for target in page.locator("button:visible, .button:visible, nav a:visible").all():
            box = target.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) >= LEAST_TARGET_PX
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= size[0]
