"""The HTML page and its tables: escaped, self-contained, numbers as written in words."""

from __future__ import annotations

import base64
import html.parser
import io
import math

import numpy as np
from PIL import Image

from visage.evaluation.bootstrap import Estimate, Group
from visage.evaluation.html import (
    Code,
    Finding,
    Findings,
    Gallery,
    Picture,
    Section,
    Table,
    Words,
    figures_table,
    groups_table,
    number,
    page,
    settings_table,
    title_of,
)

MAE = Estimate(value=4.4651, low=4.3249, high=4.61)


def png(width: int = 4, height: int = 2) -> bytes:
    """A picture of noise, as a photo has it."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()
NONE = Estimate(value=math.nan, low=math.nan, high=math.nan)


class Balance(html.parser.HTMLParser):
    """Counts tags that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        assert attrs is not None

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_text_is_escaped_and_every_tag_closed() -> None:
    nasty = '<b>&"quoted"</b>'
    table = Table(caption=nasty, header=[nasty, ""], rows=[[nasty, "1"]])
    picture = Picture(caption=nasty, png=PNG)
    finding = Finding(question=nasty, value=nasty, sentences=[nasty])
    parts = [
        table,
        Words(text=nasty),
        Code(text=nasty),
        picture,
        Gallery(pictures=[picture]),
        Findings(findings=[finding]),
    ]
    sections = [Section(title=nasty, parts=parts, folded=folded) for folded in (False, True)]
    text = page(nasty, sections)
    assert "<b>" not in text
    assert text.count(base64.b64encode(PNG).decode()) == 4
    balance = Balance()
    balance.feed(text)
    assert balance.open == []


class Texts(html.parser.HTMLParser):
    """Collects what a reader sees, and the pictures' addresses."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.seen += [str(value) for name, value in attrs if name in ("alt", "src", "href")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] != "style":
            self.seen += [data] if data.strip() else []


def test_the_page_shows_its_contents_in_order_and_needs_nothing_else() -> None:
    table = Table(caption="By sex", header=["", "MAE"], rows=[["male", "4.5"], ["a<b", "-0.5"]])
    code = '{\n  "a": 1\n\n}'
    sections = [
        Section(title="First", parts=[table, Words(text='It\'s "so" & so.')]),
        Section(title="Second", parts=[Code(text=code), Picture(caption="a map", png=PNG)]),
    ]
    text = page("Title", sections)
    texts = Texts()
    texts.feed(text)
    assert texts.seen == [
        *("Title", "Title", "#s1", "First", "#s2", "Second"),
        *("First", "By sex", "MAE", "male", "4.5", "a<b", "-0.5", 'It\'s "so" & so.'),
        *("Second", code, "a map", "data:image/png;base64," + base64.b64encode(PNG).decode()),
    ]
    assert text.count('<td class="number">') == 2
    assert '<th scope="col" class="number">MAE</th>' in text
    assert not {"script", "link", "iframe"} & set(texts.tags)
    assert "http" not in text
    assert page("Title", sections) == text


def test_a_phone_shows_the_page_at_its_own_width_and_scrolls_wide_pictures() -> None:
    wide = Picture(caption="wide", png=png(1000, 100))
    text = page("Title", [Section(title="First", parts=[wide])])
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert 'width="1000" height="100" style="min-width: 600px"' in text


def test_a_picture_of_faces_is_put_in_as_a_much_smaller_file() -> None:
    content = png(300, 300)
    address = Picture(caption="faces", png=content, shows_faces=True).address
    kind, _, text = address.partition(";base64,")
    shown = base64.b64decode(text)
    assert kind == "data:image/webp"
    assert Image.open(io.BytesIO(shown)).size == (300, 300)
    assert len(shown) < len(content) / 2


def test_settings_are_written_as_a_person_writes_them() -> None:
    settings = {"decode": None, "flip": True, "cs_thresholds": (3.0, 5.0), "groups": (), "seed": 0}
    assert [row[1] for row in settings_table("x", settings).rows] == [
        *("not set", "yes", "3, 5", "none", "0"),
    ]


def test_figures_are_written_with_interval_unit_and_digits() -> None:
    share = Estimate(value=0.689, low=0.67, high=1.0)
    columns = {
        "test": {"mae": MAE, "cs_5": share, "epsilon_error": NONE},
        "unseen": {"mae": NONE, "cs_5": share, "epsilon_error": NONE},
    }
    table = figures_table("x", columns, "years", 2)
    assert table.rows == [
        ["MAE (years)", "4.47 (4.32 to 4.61)", "undefined"],
        ["CS@5 (within 5 years)", "68.9% (67.0% to 100.0%)", "68.9% (67.0% to 100.0%)"],
    ]


def test_titles_and_numbers_know_their_unit() -> None:
    assert title_of("pearson", "years") == "Pearson correlation"
    assert title_of("rmse", "points") == "RMSE (points)"
    assert title_of("cs_0.5", "points") == "CS@0.5 (within 0.5 points)"
    assert number("pearson", 0.93456, 2) == "0.935"
    assert number("bias", -0.5, 2) == "-0.50"
    assert number("bias", -0.001, 2) == "0.00"
    assert number("coverage_80", 0.8, 2) == "80.0%"


def test_a_table_for_the_terminal_is_aligned_and_for_markdown_is_piped() -> None:
    groups = [Group(name="male|all", num_faces=12345, estimates={"mae": MAE})]
    table = groups_table("sex", groups, ["mae"], "years", 1)
    assert table.text().splitlines() == [
        "By sex",
        "sex        faces       MAE (years)",
        "male|all  12,345  4.5 (4.3 to 4.6)",
    ]
    assert table.markdown().splitlines()[2] == "| male\\|all | 12,345 | 4.5 (4.3 to 4.6) |"
