"""The body of POST /predict: a form with pictures, or one picture as it is -> their bytes.

Everything stays in memory: the parser of Starlette would write large parts into files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from visage.server.pictures import from_base64, kind_of, looks_like_base64
from visage.server.refusals import Refusal, seen
from visage.server.tables import PHOTO, check_uncompressed, type_phrase

SWITCHES = ("all_faces", "flip", "explain", "distribution")
# What programs send that give no type, or `curl --data-binary` without a header
RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain")
MULTIPART = "multipart/form-data"
# Of a part's headers; their names and values are a few hundred bytes
MAX_HEADERS = 16
MAX_HEADER_BYTES = 4_096


@dataclass
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)

    @property
    def name(self) -> str:
        """The field's name, as `Content-Disposition` gives it."""
        _, attributes = parse_options_header(self.headers.get("content-disposition", ""))
        return attributes.get(b"name", b"").decode("utf-8", "replace")


def check_predict_type(headers: Mapping[str, str]) -> None:
    """415 for a body that is neither a picture nor a form."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind == MULTIPART or kind in RAW_TYPES or kind.startswith("image/")):
        raise Refusal("predict_type", seen=type_phrase(kind))
    check_uncompressed(headers)


def pictures_of(body: bytes, content_type: str, max_items: int, max_bytes: int) -> list[bytes]:
    """The pictures of a body, in order; a Refusal where it holds something else."""
    if content_type.partition(";")[0].strip().lower() == MULTIPART:
        parts = _parts(body, content_type, max_items)
        return [_picture(bytes(part), item, max_bytes) for item, part in enumerate(parts)]
    if not body:
        raise Refusal("empty_body")
    return [_picture(body, 0, max_bytes)]


def _picture(data: bytes, item: int, max_bytes: int) -> bytes:
    """The picture in some bytes, which may be its base64."""
    if kind_of(data) == "text" and looks_like_base64(data):
        return from_base64(data.decode("utf-8", "replace"), item, PHOTO, max_bytes)
    if len(data) > max_bytes:
        raise Refusal("picture_bytes", item=item, column=PHOTO, limit=max_bytes)
    return data


def _parts(body: bytes, content_type: str, max_items: int) -> list[bytearray]:
    """The fields `photo` of a form; a Refusal for any other field."""
    _, attributes = parse_options_header(content_type)
    boundary = attributes.get(b"boundary")
    if not boundary:
        raise Refusal("form_damaged", reason="its Content-Type names no boundary")

    reader = _Reader(max_items)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal("form_damaged", reason="it is not multipart/form-data") from error
    if not reader.ended:
        raise Refusal("form_damaged", reason="its end is missing")
    if not reader.parts:
        raise Refusal("form_without_photo")

    for part in reader.parts:
        if part.name in SWITCHES:
            raise Refusal("form_switch", seen=part.name)
        if part.name != PHOTO:
            raise Refusal("form_field", seen=seen(part.name))
    return [part.data for part in reader.parts]


class _Reader:
    """Collects the parts of a form while it is parsed."""

    def __init__(self, max_items: int) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._max_items = max_items
        self._name = b""
        self._value = b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_header_field": self._field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._max_items:
            raise Refusal("many_items", limit=self._max_items)
        self.parts.append(_Part())

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        size = len(self._name) + len(self._value)
        if size > MAX_HEADER_BYTES or len(self.parts[-1].headers) == MAX_HEADERS:
            raise Refusal("form_damaged", reason="a field has too many headers")

    def _header_end(self) -> None:
        name = self._name.decode("latin-1").lower()
        self.parts[-1].headers[name] = self._value.decode("latin-1")
        self._name = b""
        self._value = b""

    def _end(self) -> None:
        self.ended = True
