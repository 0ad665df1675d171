"""Answers as text: a table for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from visage.cli.photo_list import NamedPhoto

if TYPE_CHECKING:
    from visage.inference.results import FacePrediction, PhotoPrediction

TABLE_HEADER = ("photo", "face", "value", "80 % interval", "box")
CSV_HEADER = (
    "file",
    "face",
    "quantity",
    "unit",
    "value",
    "low",
    "high",
    "std",
    "x0",
    "y0",
    "x1",
    "y1",
    "probability",
    "chosen",
    "reason",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A photo and what the model says of it."""

    photo: NamedPhoto
    result: PhotoPrediction


def table(stream: TextIO, answers: Iterable[Answer]) -> None:
    """A line a face, in columns; a photo without a face has one line that says so. Unreadable
    photos are left out."""
    rows = [TABLE_HEADER]
    for answer in answers:
        if not answer.result.readable:
            continue
        rows += [
            (answer.photo.name, str(number), *_numbers(face))
            for number, face in enumerate(answer.result, start=1)
        ]
        if not answer.result.faces:
            rows.append((answer.photo.name, "-", answer.result.reason or "", "", ""))

    if len(rows) > 1:
        stream.writelines(aligned(rows))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip() + "\n")
    return lines


def _numbers(face: FacePrediction) -> tuple[str, str, str]:
    """Value, interval and box for a person; the box in whole pixels, left top right bottom."""
    box = " ".join(f"{coordinate:.0f}" for coordinate in face.box)
    return face.value_text(), face.interval_text(), box


def json_documents(
    stream: TextIO, answers: Iterable[Answer], is_single: bool, distribution: bool
) -> None:
    """The document of a single photo; of several, a document a line, with the key `file` before the
    others. An unreadable single photo gives none."""
    for answer in answers:
        document = answer.result.to_dict(distribution)
        if not is_single:
            named = {"file": str(answer.photo.path), **document}
            stream.write(json.dumps(named, ensure_ascii=False) + "\n")
        elif answer.result.readable:
            stream.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def csv_rows(stream: TextIO, answers: Iterable[Answer]) -> None:
    """A row a face; a photo without one has one row, with the reason in the last column."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_HEADER)

    for answer in answers:
        file = str(answer.photo.path)
        for number, face in enumerate(answer.result, start=1):
            numbers = (face.value, face.low, face.high, face.std, *face.box, face.probability)
            chosen = str(face.chosen).lower()
            writer.writerow([file, number, face.quantity, face.unit, *numbers, chosen, ""])
        if not answer.result.faces:
            blank = [""] * (len(CSV_HEADER) - 2)
            writer.writerow([file, *blank, answer.result.reason])
