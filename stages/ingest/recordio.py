"""MXNet's RecordIO as InsightFace packs faces: a file of records, read one after the other; damage
is skipped.

A record: magic 0xced7230a, a word (upper 3 bits: 0 whole, 1 first, 2 middle, 3 last part; lower 29:
length), the data, zeros up to a multiple of four. Where the data itself held the magic, it was
split there into parts: joining them puts the magic back. All numbers are little-endian. The data
begin with a header (flag, label, id, id2); a flag above 0 says how many labels follow it, instead
of the one inside; the rest is the encoded picture. After damage the reader searches for the next
magic, so that one spoilt record loses no other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

MAGIC = struct.pack("<I", 0xCED7230A)
HEAD = struct.Struct("<4sI")
HEADER = struct.Struct("<IfQQ")
# Kinds of parts, as MXNet numbers them
WHOLE = 0
FIRST = 1
LAST = 3
LENGTH_BITS = 29
CHUNK_BYTES = 1 << 20


class Chunk(NamedTuple):
    """One record's data, or the reason why it has none; `begin` and `end` are positions in the
    file."""

    begin: int
    end: int
    data: bytes
    damage: str | None


class Header(NamedTuple):
    """What InsightFace notes with a picture: its labels (the person first) and its number."""

    labels: tuple[float, ...]
    number: int
    picture: bytes


def read_chunks(path: Path, start: int, max_bytes: int) -> Iterator[Chunk]:
    """The records from position `start` on; longer ones than `max_bytes` count as damaged."""
    with path.open("rb") as file:
        file.seek(start)
        while file.peek(1):
            begin = file.tell()
            try:
                data = _read_record(file, max_bytes)
            except ValueError as error:
                end = _next_magic(file, begin + 1)
                yield Chunk(begin, end, b"", str(error))
                file.seek(end)
            else:
                yield Chunk(begin, file.tell(), data, None)


def _read_record(file: IO[bytes], max_bytes: int) -> bytes:
    """The record that begins here, its parts joined; ValueError where there is none."""
    parts: list[bytes] = []
    while True:
        head = file.read(HEAD.size)
        if len(head) < HEAD.size:
            raise ValueError("cut short")

        magic, word = HEAD.unpack(head)
        kind = word >> LENGTH_BITS
        length = word & ((1 << LENGTH_BITS) - 1)
        if magic != MAGIC or (kind in (WHOLE, FIRST)) == bool(parts):
            reason = "a part of it is missing" if parts else "not the beginning of a record"
            raise ValueError(reason)
        if length + sum(map(len, parts)) > max_bytes:
            raise ValueError(f"over {max_bytes} bytes")

        data = file.read(length)
        file.read(-length % 4)
        if len(data) < length or _holds_magic(data):
            raise ValueError("cut short")

        parts.append(data)
        if kind in (WHOLE, LAST):
            return MAGIC.join(parts)


def _holds_magic(data: bytes) -> bool:
    """Whether another record begins inside: a writer would have split whole data there."""
    found = data.find(MAGIC)
    while found >= 0 and found % 4:
        found = data.find(MAGIC, found + 1)
    return found >= 0


def _next_magic(file: IO[bytes], position: int) -> int:
    """The position of the next magic from `position` on; the file's end where there is none."""
    file.seek(position)
    window = b""
    while chunk := file.read(CHUNK_BYTES):
        window += chunk
        found = window.find(MAGIC)
        if found >= 0:
            return position + found

        # A magic may begin in this chunk and end in the next
        keep = len(MAGIC) - 1
        position += len(window) - min(keep, len(window))
        window = window[-keep:]
    return file.tell()


def parse_header(data: bytes) -> Header:
    """A record's data as labels, number and picture; ValueError where they are too short for it."""
    if len(data) < HEADER.size:
        raise ValueError("too short for its header")
    flag, label, number, _ = HEADER.unpack_from(data)
    end = HEADER.size + 4 * flag
    if len(data) < end:
        raise ValueError(f"too short for {flag} labels")
    labels = struct.unpack_from(f"<{flag}f", data, HEADER.size) if flag else (label,)
    return Header(labels, number, data[end:])


def first_identity(path: Path, max_bytes: int) -> int | None:
    """The number from which on records list people, not pictures. Record 0 holds it, and the index
    beside the file has the position of record 0. None without an index or such a record."""
    index = path.with_suffix(".idx")
    if not index.is_file():
        return None

    with index.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            key, _, position = line.strip().partition("\t")
            if key == "0" and position.isdigit():
                chunk = next(read_chunks(path, int(position), max_bytes), None)
                if chunk is None or chunk.damage is not None:
                    return None
                return _table_start(chunk)
    return None


def _table_start(chunk: Chunk) -> int | None:
    header = parse_header(chunk.data)
    return int(header.labels[0]) if len(header.labels) == 2 and not header.picture else None
