"""An xlsx file becomes rows of cells, one at a time. This is the only module that reads xlsx.

Rating sheets begin anywhere: a title or a block of explanations may stand above the line with the
columns' names, and one file may hold several sheets. `named_rows` finds that line in each sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError
from zipfile import BadZipFile

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

BROKEN = (BadZipFile, InvalidFileException, ParseError, KeyError, EOFError, OSError)
Cells = tuple[Any, ...]


class Line(NamedTuple):
    """`number` counts a sheet's lines from 1, as spreadsheet programs do; `cells`: by column."""

    sheet: str
    number: int
    cells: dict[str, Any]


def sheet_lines(path: Path) -> Iterator[tuple[str, int, Cells]]:
    """Every line of every sheet as (sheet, number, values), streamed; ValueError where the file is
    no xlsx."""
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            for sheet in book.worksheets:
                for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
                    yield sheet.title, number, cells
        finally:
            book.close()
    except BROKEN as error:
        raise ValueError(f"{path}: not a readable xlsx file ({error}); fetch it again") from error


def named_rows(path: Path, wanted: Sequence[str]) -> Iterator[Line]:
    """The lines below the one that names all `wanted` columns, in each sheet that has one;
    ValueError if none has.

    A line that ends before its header does (blank ones do, where the file doesn't say its sheet's
    size) has None there.
    """
    header: list[str] = []
    header_sheet: str | None = None

    for sheet, number, cells in sheet_lines(path):
        if sheet == header_sheet:
            named = dict.fromkeys(header) | dict(zip(header, cells, strict=False))
            yield Line(sheet, number, named)
            continue

        names = [str(cell).strip() if cell is not None else "" for cell in cells]
        if set(wanted) <= set(names):
            header = names
            header_sheet = sheet

    if header_sheet is None:
        raise ValueError(
            f"{path}: no line of any sheet names the columns {', '.join(wanted)}; correct the "
            "options"
        )


def cell_number(cell: Any) -> float | None:
    """A cell as a finite number, None for an empty one or anything else."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None

    is_number = math.isfinite(value) and not isinstance(cell, bool)
    return value if is_number else None
