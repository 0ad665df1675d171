"""Tables, pictures and words -> one HTML page that needs nothing else: styles and PNGs inside, no
script, no network.

Every text is escaped; a page of the same contents has the same bytes.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visage.evaluation.bootstrap import Estimate, Group

SHARES = ("cs_", "coverage")  # figures that are shares of faces, written as percentages
PURE = ("pearson", "epsilon_error")  # figures without a unit
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
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; font-size: .87rem; }
caption { text-align: left; font-weight: 600; padding: .2rem 0; } th, td { padding: .2rem .7rem; text-align: left; }
tr { border-bottom: 1px solid #e3e3e3; } thead th { border-bottom: 2px solid #999; } td.number { text-align: right; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .87rem; }
.scroll { overflow-x: auto; } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a header; `caption` says what they are."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in self.rows)
        return (
            f'<div class="scroll"><table><caption>{html.escape(self.caption)}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        )

    def text(self) -> str:
        """The table for a terminal: columns padded, the first to the left, the others to the right."""
        rows = [list(self.header), *(list(row) for row in self.rows)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.header))]
        lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
        return "\n".join([self.caption, *("  ".join(line).rstrip() for line in lines)])

    def markdown(self) -> str:
        """The table as GitHub writes it, without its caption."""
        rows = [list(self.header), ["---"] * len(self.header), *(list(row) for row in self.rows)]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
        )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG and what to see in it."""

    caption: str
    png: bytes

    def html(self) -> str:
        data, caption = base64.b64encode(self.png).decode(), html.escape(self.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


@dataclass(frozen=True, kw_only=True)
class Words:
    """A paragraph."""

    text: str

    def html(self) -> str:
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True, kw_only=True)
class Code:
    """Text kept as it is, such as a model's config."""

    text: str

    def html(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"


Part = Table | Picture | Words | Code


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chapter of the page."""

    title: str
    parts: Sequence[Part]

    def html(self) -> str:
        return f"<h2>{html.escape(self.title)}</h2>\n" + "\n".join(
            part.html() for part in self.parts
        )


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    body = "\n".join(section.html() for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta '
        f'charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def _cell(text: str) -> str:
    is_number = text[:1].isdigit() or text[:2] in {f"-{digit}" for digit in range(10)}
    return (
        f'<td class="number">{html.escape(text)}</td>'
        if is_number
        else f"<td>{html.escape(text)}</td>"
    )


def title_of(metric: str, unit: str) -> str:
    """What a figure is called, with its unit: `cs_5` -> "CS@5 (share within 5 years)"."""
    if metric.startswith("cs_"):
        return f"CS@{metric[3:]} (within {metric[3:]} {unit})"
    name = TITLES[metric]
    return name if metric.startswith((*SHARES, *PURE)) else f"{name} ({unit})"


def number(metric: str, value: float, digits: int) -> str:
    """A figure as written: shares in per cent, figures without unit to three digits, others to
    `digits`."""
    if math.isnan(value):
        return "undefined"
    if metric.startswith(SHARES):
        return f"{value:.1%}"
    return f"{value:.{3 if metric in PURE else digits}f}"


def with_interval(metric: str, estimate: Estimate, digits: int) -> str:
    """4.47 (4.32 to 4.61)"""
    value, low, high = (
        number(metric, end, digits) for end in (estimate.value, estimate.low, estimate.high)
    )
    return value if math.isnan(estimate.low) else f"{value} ({low} to {high})"


def figures_table(
    caption: str, columns: Mapping[str, Mapping[str, Estimate]], unit: str, digits: int
) -> Table:
    """Metrics down, lists of faces across; a metric that is undefined everywhere is left out."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    rows = [
        [
            title_of(name, unit),
            *(with_interval(name, figures[name], digits) for figures in columns.values()),
        ]
        for name in names
        if not all(math.isnan(figures[name].value) for figures in columns.values())
    ]
    return Table(caption=caption, header=["", *columns], rows=rows)


def groups_table(
    attribute: str, groups: Sequence[Group], metrics: Sequence[str], unit: str, digits: int
) -> Table:
    """One row a group: how many faces, and the chosen metrics with intervals."""
    rows = [
        [
            group.name,
            f"{group.num_faces:,}",
            *(with_interval(m, group.estimates[m], digits) for m in metrics),
        ]
        for group in groups
    ]
    header = [attribute, "faces", *(title_of(metric, unit) for metric in metrics)]
    return Table(caption=f"By {attribute}", header=header, rows=rows)


def settings_table(caption: str, settings: Mapping[str, Any]) -> Table:
    """Names and values."""
    return Table(
        caption=caption,
        header=["", ""],
        rows=[[name, str(value)] for name, value in settings.items()],
    )
