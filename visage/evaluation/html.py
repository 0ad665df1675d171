"""Tables, pictures and words -> one HTML page that needs nothing else: the style and the pictures
are inside, and the page has no script and loads nothing.

The layout is in templates/. Every text is escaped; the same contents give the same bytes.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from visage.evaluation.bootstrap import Estimate, Group

# Metrics that are shares of faces, written as percentages.
SHARES = ("cs_", "coverage")

# Metrics without a unit.
PURE = ("pearson", "epsilon_error")

TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "pearson": "Pearson correlation",
    "epsilon_error": "epsilon-error",
    "bias": "bias (prediction - label)",
    "coverage_80": "labels inside the 80% interval",
    "crps": "CRPS",
    "mean_std": "mean standard deviation",
}

TEMPLATES = Path(__file__).with_name("templates")

# A picture is not shown smaller than this share of its pixels, because its text would be too small
# to read; it scrolls inside its frame instead.
MIN_SCALE = 0.6

# Faces as WebP take a tenth of their bytes as PNG.
WEBP_QUALITY = 82


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header; `caption` says what they are."""

    kind: ClassVar = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """The table for a terminal: the first column left-aligned, the others right-aligned."""
        rows = [self.header, *self.rows]

        def width(column: int) -> int:
            return max(len(row[column]) for row in rows)

        widths = [width(column) for column in range(len(self.header))]

        lines = [self.caption]
        for first, *others in rows:
            cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def markdown(self) -> str:
        """The table as GitHub writes it, without its caption."""
        rows = [self.header, ["---"] * len(self.header), *self.rows]
        lines = []
        for row in rows:
            cells = [cell.replace("|", "\\|") for cell in row]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG, and what it shows as its title says it; one that `shows_faces` is put into the page as
    WebP."""

    kind: ClassVar = "picture"
    caption: str
    png: bytes
    shows_faces: bool = False

    @property
    def address(self) -> str:
        """An address that holds the picture itself."""
        kind, content = ("webp", self._webp()) if self.shows_faces else ("png", self.png)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

    def _webp(self) -> bytes:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(self.png)) as image:
            image.convert("RGB").save(buffer, "WEBP", quality=WEBP_QUALITY)
        return buffer.getvalue()

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        with Image.open(io.BytesIO(self.png)) as image:
            return image.size

    @property
    def min_width_px(self) -> int:
        """The smallest width at which its text can be read."""
        return round(MIN_SCALE * self.size_px[0])


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures side by side where the window is wide enough."""

    kind: ClassVar = "gallery"
    pictures: Sequence[Picture]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A question, the figure that answers it, and the sentences that qualify the answer."""

    question: str
    value: str
    sentences: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Findings side by side: what a reader in a hurry takes away."""

    kind: ClassVar = "findings"
    findings: Sequence[Finding]


@dataclass(frozen=True, kw_only=True)
class Words:
    """A paragraph."""

    kind: ClassVar = "words"
    text: str


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text with its line breaks and spaces, such as a model's config."""

    kind: ClassVar = "code"
    text: str


# The kind of a part names its macro in templates/parts.html.j2.
Part = Table | Picture | Gallery | Findings | Words | Code


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chapter of the page; a `folded` one shows its contents when its title is clicked."""

    title: str
    parts: Sequence[Part]
    folded: bool = False


def template(name: str, *folders: Path) -> Template:
    """The template `name` of this package or of `folders`; every value that it shows is escaped."""
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    environment.tests["numeric"] = _is_numeric
    return environment.get_template(name)


def page(title: str, sections: Sequence[Section]) -> str:
    """The page as HTML."""
    return template("report.html.j2").render(title=title, sections=sections)


def _is_numeric(text: str) -> bool:
    """Whether a cell begins like a number; such cells are right-aligned."""
    return text.removeprefix("-")[:1].isdigit()


def title_of(metric: str, unit: str) -> str:
    """A metric's name on the page, with its unit: `cs_5` -> "CS@5 (within 5 years)"."""
    if metric.startswith("cs_"):
        return f"CS@{metric[3:]} (within {metric[3:]} {unit})"
    name = TITLES[metric]
    return name if metric.startswith((*SHARES, *PURE)) else f"{name} ({unit})"


def number(metric: str, value: float, digits: int) -> str:
    """A metric's value as text: shares in per cent, values without unit to three digits, others to
    `digits`."""
    if math.isnan(value):
        return "undefined"
    # `z`: no -0.00
    if metric.startswith(SHARES):
        return f"{value:z.1%}"
    decimals = 3 if metric in PURE else digits
    return f"{value:z.{decimals}f}"


def with_interval(metric: str, estimate: Estimate, digits: int) -> str:
    """4.47 (4.32 to 4.61)"""
    value = number(metric, estimate.value, digits)
    if math.isnan(estimate.low):
        return value
    low = number(metric, estimate.low, digits)
    high = number(metric, estimate.high, digits)
    return f"{value} ({low} to {high})"


def figures_table(
    caption: str, columns: Mapping[str, Mapping[str, Estimate]], unit: str, digits: int
) -> Table:
    """Metrics down, lists of faces across; a metric that is undefined everywhere is left out."""
    # Each name once, in the order in which they appear.
    names: dict[str, None] = {}
    for figures in columns.values():
        names |= dict.fromkeys(figures)

    rows = []
    for name in names:
        estimates = [figures[name] for figures in columns.values()]
        if all(math.isnan(estimate.value) for estimate in estimates):
            continue
        cells = [with_interval(name, estimate, digits) for estimate in estimates]
        rows.append([title_of(name, unit), *cells])

    return Table(caption=caption, header=["", *columns], rows=rows)


def groups_table(
    attribute: str, groups: Sequence[Group], metrics: Sequence[str], unit: str, digits: int
) -> Table:
    """One row a group: how many faces, and the chosen metrics with intervals."""
    rows = []
    for group in groups:
        cells = [with_interval(metric, group.estimates[metric], digits) for metric in metrics]
        rows.append([group.name, f"{group.num_faces:,}", *cells])

    titles = [title_of(metric, unit) for metric in metrics]
    header = [attribute, "faces", *titles]
    return Table(caption=f"By {attribute}", header=header, rows=rows)


def settings_table(caption: str, settings: Mapping[str, Any]) -> Table:
    """Names and values, as a person writes them."""
    rows = [[name, _setting(value)] for name, value in settings.items()]
    return Table(caption=caption, header=["setting", "value"], rows=rows)


def _setting(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_setting, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
