"""Makes a sheet to correct (review.csv, and pages with the faces) of coarse labels, and a table of
a corrected sheet."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from flows.label.database import LabelDatabase, sigma_text
from stages.sources.table import number
from visage.atomic import atomic_write
from visage.detection.image_io import PhotoError, read_photo
from visage.evaluation.html import template
from visage.parallel import batched

COLUMNS = ("photo", "label", "spread", "sigma", "group", "corrected")
Unreviewed = Literal["take", "leave"]
THUMBNAIL_PX = 160
# Of the box's longer side, added on each of its sides.
AROUND_FACE = 0.6
PAGE_PHOTOS = 200
TEMPLATES = Path(__file__).with_name("templates")


def write_rows(path: Path, header: Sequence[str], rows: Iterator[tuple[object, ...]]) -> int:
    """Writes a CSV file atomically; returns the number of its rows."""
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        return sum(1 for _ in map(writer.writerow, rows))


def carry_edits(database: LabelDatabase, review: Path) -> int:
    """Copies corrections and changed sigmas of an earlier review.csv to table `carried`; returns
    the number of those that could not be carried.

    Those are listed in not_carried.csv. The earlier review.csv is kept as review_before.csv.
    """
    if not review.is_file():
        return 0

    with atomic_write(review.with_name("review_before.csv")) as part:
        part.write_bytes(review.read_bytes())
    database.add("edited", _edits(database, review))

    lost: list[tuple[str, str, str, str]] = []
    carried: set[str] = set()
    for photo_id, corrected, sigma, target in database.edits():
        if target is None or target in carried:
            reason = (
                f"{target} has a correction" if target else "gone, changed, or without a label now"
            )
            lost.append((photo_id, corrected, sigma, reason))
        else:
            carried.add(target)
            database.add("carried", [(target, corrected, sigma)])

    if lost:
        header = ("photo", "corrected", "sigma", "reason")
        write_rows(review.with_name("not_carried.csv"), header, iter(lost))
    return len(lost)


def _edits(database: LabelDatabase, review: Path) -> Iterator[tuple[str, str, str]]:
    """(photo, corrected, sigma) of the lines that a person edited; sigma is empty if it is
    unchanged."""
    for cells in _read_review(review):
        written = database.written_sigma(cells["photo"])
        sigma = "" if written is None or _same_number(cells["sigma"], written) else cells["sigma"]
        if cells["corrected"] or sigma:
            yield cells["photo"], cells["corrected"], sigma


def _same_number(text: str, other: str) -> bool:
    """Whether two texts are the same number: spreadsheet programs write 6.0 as 6."""
    try:
        return text == other or float(text) == float(other)
    except ValueError:
        return False


def write_review(database: LabelDatabase, review: Path) -> int:
    """Writes review.csv: the models' labels, the widest spread first, with the edits of people
    (`carry_edits`); returns the number of rows."""
    num_rows = write_rows(review, COLUMNS, _review_rows(database))
    database.note_written()
    return num_rows


def _review_rows(database: LabelDatabase) -> Iterator[tuple[object, ...]]:
    for photo_id, label, spread, sigma, group, _, corrected, own_sigma in database.review():
        sigma_cell = own_sigma or sigma_text(sigma)
        yield photo_id, f"{label:.4g}", f"{spread:.3g}", sigma_cell, group, corrected


def write_pages(
    database: LabelDatabase, photos: Path, folder: Path, unit: str, num_photos: int
) -> None:
    """Writes pages with the first `num_photos` faces of the review; a page needs no other file."""
    sheet = template("sheet.html.j2", TEMPLATES)
    rows = (row for row, _ in zip(database.review(), range(num_photos), strict=False))

    for page, batch in enumerate(batched(rows, PAGE_PHOTOS)):
        # Line 1 of the CSV is its header.
        first = page * PAGE_PHOTOS + 2
        faces = [_face(photos, line, row) for line, row in enumerate(batch, start=first)]
        text = sheet.render(
            title=f"Lines {first} to {first + len(batch) - 1}",
            width_px=THUMBNAIL_PX,
            unit=unit,
            faces=faces,
        )
        with atomic_write(folder / f"sheet_{page + 1:03d}.html") as part:
            part.write_text(text, encoding="utf-8")


def _face(photos: Path, line: int, row: tuple[Any, ...]) -> dict[str, Any]:
    """A row of the review as the page shows it."""
    photo_id, label, spread, sigma, _, box, *_ = row
    return {
        "line": line,
        "picture": _thumbnail(photos / photo_id, json.loads(box)),
        "label": f"{label:.4g}",
        "spread": f"{spread:.2g}",
        "sigma": f"{sigma:.2g}",
        "photo_id": photo_id,
    }


def _thumbnail(photo: Path, box: Sequence[float]) -> str:
    """The face with some of its surroundings, as a data URL; empty if the photo cannot be read."""
    try:
        image = Image.fromarray(read_photo(photo))
    except PhotoError:
        return ""

    x0, y0, x1, y1 = box
    rim = AROUND_FACE * max(x1 - x0, y1 - y0)
    face = image.crop(
        (
            max(0, x0 - rim),
            max(0, y0 - rim),
            min(image.width, x1 + rim),
            min(image.height, y1 + rim),
        )
    )

    face.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    stream = io.BytesIO()
    face.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


class Finished(NamedTuple):
    """The numbers of a corrected sheet's rows: corrected, taken without a review, left out without
    a review, and faulty."""

    corrected: int
    taken: int
    left_out: int
    faulty: int


def finish(
    review: Path,
    table: Path,
    skipped: Path,
    label_range: tuple[float, float],
    unreviewed: Unreviewed,
) -> Finished:
    """Makes `table` (photo, label, sigma), which source `table` reads, of a corrected sheet; faulty
    lines are listed in `skipped`.

    The label is the correction if there is one; sigma is the sheet's in either case. ValueError for
    a file that is no such sheet.
    """
    rows: dict[str, tuple[float, float]] = {}
    faults: list[tuple[str, str]] = []
    counts = {"corrected": 0, "take": 0, "leave": 0}

    # Line 1 is the header.
    for line, cells in enumerate(_read_review(review), start=2):
        photo = cells["photo"]
        is_corrected = bool(cells["corrected"])
        try:
            if photo in rows:
                raise ValueError("names its photo again")
            label_sigma = _label_sigma(cells, label_range)
        except ValueError as error:
            faults.append((photo, f"line {line}: {error}"))
            continue

        counts["corrected" if is_corrected else unreviewed] += 1
        if is_corrected or unreviewed == "take":
            rows[photo] = label_sigma

    if not rows:
        raise ValueError(
            f"{review}: no line is usable; fill its column `corrected`, or take the unreviewed ones"
        )

    lines = ((photo, *numbers) for photo, numbers in rows.items())
    write_rows(table, ("photo", "label", "sigma"), lines)
    write_rows(skipped, ("photo", "reason"), iter(faults))
    return Finished(counts["corrected"], counts["take"], counts["leave"], len(faults))


def _read_review(review: Path) -> Iterator[dict[str, str]]:
    if not review.is_file():
        raise ValueError(f"{review}: no such sheet; the first run writes it")

    with review.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = sorted(set(COLUMNS) - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(
                f"{review}: has no column {missing[0]!r}, only {reader.fieldnames}; save it as it "
                f"came"
            )

        for cells in reader:
            yield {name: (cells[name] or "").strip() for name in COLUMNS}


def _label_sigma(cells: dict[str, str], label_range: tuple[float, float]) -> tuple[float, float]:
    """A line's label, corrected or not, and sigma; ValueError names what is wrong with the line."""
    low, high = label_range
    column = "corrected" if cells["corrected"] else "label"
    label = number(cells[column], column)
    sigma = number(cells["sigma"], "sigma")

    if not cells["photo"]:
        raise ValueError("names no photo")
    if label is None or not low <= label <= high:
        raise ValueError(f"label {label} is not between {low:g} and {high:g}")
    if sigma is None or sigma < 0:
        raise ValueError(f"sigma {sigma} is no standard deviation")

    return label, sigma
