"""MS-Celeb-1M, photos of 100,000 people in container files, which are unpacked into a folder per
person.

- TSV: a row a face, `MID, search rank, image URL, page URL, face id, rectangle, JPEG in base64`; 85
  GB in one file.
- InsightFace's `train.rec` (see recordio.py), cleaned and aligned; `train.idx` beside it has the
  position of the list of people, `property` is not needed. A record's first label is the person's
  number.

Both are read row by row; what cannot be read is listed with its place in the file. A photo is at
`<container>/<group>/<person>/<photo>.jpg`, so that no folder holds more than about a thousand
others. The rows are those of a set with a folder per person. People with too few photos are cut by
`validate.identity.min_images_per_person` and `pretrain.min_images_per_person`, not here. Locations
are container files, or folders that hold some; the other files of such a folder are left where they
are.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from stages.ingest.recordio import Chunk, first_identity, parse_header, read_chunks
from stages.ingest.records import ManifestRow, NoOptions, Record, ReportSkip, Source
from visage.photo_files import photos_under

NUM_COLUMNS = 7
NAME_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
# Addresses and numbers of a row; labels of a record
BESIDE_PHOTO_BYTES = 1 << 16
PEOPLE_PER_FOLDER = 1000
CHUNK_BYTES = 1 << 20


def tsv_records(path: Path, start: int, max_photo_bytes: int) -> Iterator[Record]:
    """The rows of a TSV file from position `start` on."""
    # Base64 writes three bytes as four
    longest = max_photo_bytes * 4 // 3 + BESIDE_PHOTO_BYTES
    with path.open("rb") as file:
        file.seek(start)
        while line := file.readline(longest):
            where = f"{path.name} at byte {start}"
            start += len(line)
            if len(line) == longest and not line.endswith(b"\n"):
                while (rest := file.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
                    start += len(rest)
                start += len(rest)
                yield Record(start, where, b"", f"a row of over {longest} bytes")
                continue

            try:
                yield Record(start, *_tsv_face(path.stem, line), None)
            except ValueError as error:
                yield Record(start, where, b"", str(error))


def _tsv_face(container: str, line: bytes) -> tuple[str, bytes]:
    """A row as (photo_id, JPEG); ValueError for one that is damaged."""
    cells = line.rstrip(b"\r\n").split(b"\t")
    if len(cells) != NUM_COLUMNS:
        raise ValueError(f"{len(cells)} columns, not {NUM_COLUMNS}")
    person, rank, face = (cells[column].decode("ascii", "replace") for column in (0, 1, 4))
    for text in (person, rank, face):
        if not NAME_PART.fullmatch(text):
            raise ValueError(f"{text[:64]!r} is no identifier")

    try:
        photo = base64.b64decode(cells[6], validate=True)
    except binascii.Error as error:
        raise ValueError(f"its photo is no base64 ({error})") from error
    if not photo:
        raise ValueError("has no photo")

    group = hashlib.sha256(person.encode()).hexdigest()[:2]
    return f"{container}/{group}/{person}/{rank}-{face}.jpg", photo


def rec_records(path: Path, start: int, max_photo_bytes: int) -> Iterator[Record]:
    """The pictures of a RecordIO file from position `start` on; its list of people is
    skipped."""
    max_bytes = max_photo_bytes + BESIDE_PHOTO_BYTES
    people_from = first_identity(path, max_bytes)
    for chunk in read_chunks(path, start, max_bytes):
        try:
            found = _rec_face(path.stem, chunk, people_from)
        except ValueError as error:
            yield Record(chunk.end, f"{path.name} at byte {chunk.begin}", b"", str(error))
            continue
        if found is not None:
            yield Record(chunk.end, *found, None)


def _rec_face(container: str, chunk: Chunk, people_from: int | None) -> tuple[str, bytes] | None:
    """A record as (photo_id, JPEG), None where it lists a person's pictures; ValueError for a
    damaged one."""
    if chunk.damage is not None:
        raise ValueError(chunk.damage)
    header = parse_header(chunk.data)

    if people_from is None:
        lists_people = len(header.labels) == 2
    else:
        lists_people = header.number == 0 or header.number >= people_from
    if lists_people and not header.picture:
        return None

    if not header.picture:
        raise ValueError(f"record {header.number} has no photo")
    label = header.labels[0]
    if not (label >= 0 and label == int(label)):
        raise ValueError(f"record {header.number}: label {label} is no person's number")

    person = int(label)
    folder = f"{container}/{person // PEOPLE_PER_FOLDER:04d}/{container}-{person:07d}"
    return f"{folder}/{header.number:09d}.jpg", header.picture


def ms_celeb_rows(
    raw_dir: Path,
    options: NoOptions,  # noqa: ARG001
    report_skip: ReportSkip,
) -> Iterator[ManifestRow]:
    """Every unpacked photo becomes a row with its person."""
    for photo_id in photos_under(raw_dir):
        folders = photo_id.split("/")[:-1]
        if len(folders) != 3:
            report_skip(photo_id, "is not in container/group/person")
            continue
        yield ManifestRow(photo_id, None, None, folders[-1], None, None, None)


MS_CELEB = Source(
    name="ms_celeb",
    options=NoOptions,
    rows=ms_celeb_rows,
    produce=None,
    containers={".tsv": tsv_records, ".rec": rec_records},
)
