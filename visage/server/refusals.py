"""Everything that the server refuses: the status and the sentence of each, in one table.

    python -m visage.server.refusals        # the table of docs/serve.md

A sentence names what was seen and what to send instead. It holds no stack trace and no path of the
server, and of the request's data only a name or a few characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Characters of the request that a sentence may repeat
MAX_SEEN = 40


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of refusal: its status, its sentence with fields in braces, and when it is given."""

    status: int
    sentence: str
    when: str


ITEM = "item {item}: the {column}"
FORM = '{"dataframe_records": [{"photo": "<base64>"}], "params": {"all_faces": true}}'
_FORM = FORM.replace("{", "{{").replace("}", "}}")


def _of(status: int, sentence: str, when: str) -> Kind:
    return Kind(status=status, sentence=sentence, when=when)


KINDS: dict[str, Kind] = {
    # The picture
    "not_base64": _of(
        400,
        f"{ITEM} is not base64 of a picture's bytes: it holds {{seen}} at place {{place}}",
        "text with a character that base64 does not have",
    ),
    "cut_base64": _of(
        400,
        f"{ITEM} is not base64 of a picture's bytes: {{count}} characters are one too few or too "
        "many; it was cut off",
        "base64 of an impossible length",
    ),
    "data_not_base64": _of(
        400,
        f"{ITEM} is a data: address without ;base64; send it as data:image/jpeg;base64,...",
        "a data: address whose data is not base64",
    ),
    "address": _of(
        400,
        f"{ITEM} is an address ({{seen}}...); this server fetches nothing: send the picture itself",
        "http:, https:, file:, ftp:, blob: or s3: in place of the picture",
    ),
    "no_picture": _of(
        400,
        f"{ITEM} is {{seen}}, and not a {{accepted}} picture",
        "the bytes are of another kind, which is named",
    ),
    "heic": _of(
        400,
        f"{ITEM} is a HEIC picture, which this server does not read: send it as JPEG (iPhone: "
        "Settings, Camera, Formats, Most Compatible), or install pillow-heif on the server",
        "HEIC where Pillow cannot read it",
    ),
    "scans": _of(
        400,
        f"{ITEM} is a JPEG of more than {{limit}} scans",
        "a JPEG that would keep the decoder busy for minutes",
    ),
    "unreadable": _of(
        400,
        f"{ITEM} {{reason}}",
        "the picture is damaged, or has more pixels than allowed; the reason is named",
    ),
    "picture_bytes": _of(
        400, f"{ITEM} is larger than the {{limit}} bytes allowed", "one picture is too large"
    ),
    "pixels": _of(
        400,
        "{pixels} pixels: send at most {limit} in a request",
        "all pictures together have too many pixels; nothing is decoded",
    ),
    # An aligned face
    "face_size": _of(
        400,
        "item {item}: the face is {width} x {height} px, this model takes faces aligned to {px} x "
        "{px}; send the picture as photo to have its faces found",
        "`face` is not a crop of the model's size",
    ),
    "no_landmarks": _of(
        400,
        "item {item}: this model needs the landmarks of a face: give landmarks, ten numbers in "
        "pixels of the crop, or send the picture as photo",
        "`face` without landmarks, and a network that uses them",
    ),
    "bad_landmarks": _of(
        400,
        "item {item}: landmarks must be ten numbers, x and y of left eye, right eye, nose, left "
        "and right corner of the mouth, in pixels of the crop",
        "landmarks are something else",
    ),
    # The rows of a request
    "columns": _of(
        400,
        "the rows have {seen}; send photo (or face)",
        "no row has a column `photo` or `face`; the columns are named",
    ),
    "row": _of(
        400,
        "item {item}: give either photo or face, a string with a picture in base64; found {seen}",
        "a row has both, none, or something that is not text",
    ),
    "num_items": _of(
        400,
        "{count} items: send 1 to {limit} photos or faces in a request",
        "no row, or more than allowed",
    ),
    "many_items": _of(
        400,
        "more than the {limit} photos or faces allowed in a request",
        "seen by the number of brackets and commas, before anything is parsed",
    ),
    "not_unicode": _of(
        400,
        "the request holds text that is not Unicode (half of a surrogate pair)",
        "a name or a value holds `\\ud800` alone",
    ),
    "not_json": _of(
        400,
        f"the request is not valid JSON ({{reason}}); send {_FORM}",
        "the body of `/invocations` cannot be parsed",
    ),
    "not_a_table": _of(
        400,
        f"the request is not an object with one table of photos and params ({{seen}}); send "
        f"{_FORM}",
        "JSON of another form; what was found is named",
    ),
    "table": _of(
        400,
        f"the rows of {{form}} cannot be read: {{reason}}; send {_FORM}",
        "the table is not one of rows",
    ),
    "params": _of(
        400,
        "params is not an object of switches that are true or false: {seen}",
        "`params` holds something else",
    ),
    "unknown_switch": _of(
        400, "{where} has {seen}; it knows {known}", "a switch that nobody knows"
    ),
    "switch_value": _of(
        400,
        "{where}: {name} is {seen}; give true or false",
        "a switch of the address that is neither",
    ),
    # The body of /predict
    "empty_body": _of(
        400,
        "the request is empty; send a picture (curl --data-binary @x.jpg -H 'Content-Type: "
        "image/jpeg') or a form (curl -F photo=@x.jpg)",
        "`/predict` without a body",
    ),
    "form_damaged": _of(
        400,
        "the form cannot be read: {reason}; send it as curl -F photo=@x.jpg does",
        "multipart without a boundary, or cut off",
    ),
    "form_field": _of(
        400,
        "the form has the field {seen}; send the picture in the field photo",
        "a field of another name",
    ),
    "form_switch": _of(
        400,
        "the form has the field {seen}; switches stand in the address: /predict?{seen}=true",
        "a switch as a field of the form",
    ),
    "form_without_photo": _of(
        400,
        "the form has no field photo; send it as curl -F photo=@x.jpg does",
        "a form without fields",
    ),
    # How it is sent
    "page": _of(
        404,
        "there is no such page; photos go to POST /predict or POST /invocations",
        "another address",
    ),
    "method_photos": _of(
        405,
        "photos are sent with POST",
        "`/predict` or `/invocations` with another method; `Allow` names the right one",
    ),
    "method_page": _of(405, "this page is only read", "a page with another method than GET"),
    "method_reload": _of(405, "a reload is asked for with POST", "`/reload` with another method"),
    "late": _of(
        408,
        "the request took longer than {seconds:g} s to arrive",
        "a body that comes too slowly",
    ),
    "pushed_out": _of(
        408,
        "the request arrived slowly and others waited for its place; send it again",
        "more requests arrive than there is room for: those far behind go first, from the address "
        "with most of them",
    ),
    "request_bytes": _of(
        413, "the request is larger than the {limit} bytes allowed", "counted as it arrives"
    ),
    "json_type": _of(
        415,
        "the request is {seen}; send JSON, with the header Content-Type: application/json "
        "(pictures go to /predict)",
        "`/invocations` with another type, or none",
    ),
    "charset": _of(
        415,
        "the request says {seen}; send JSON in UTF-8, with the header Content-Type: "
        "application/json",
        "`/invocations` in another charset, or with another parameter",
    ),
    "predict_type": _of(
        415,
        "the request is {seen}; send a picture (Content-Type: image/jpeg) or a form "
        "(multipart/form-data); JSON goes to /invocations",
        "`/predict` with another type",
    ),
    "compressed": _of(
        415, "the request is compressed ({seen}); send it uncompressed", "a Content-Encoding"
    ),
    # The server
    "not_here": _of(
        403,
        "a reload is asked for on the server's own machine",
        "`/reload` from another address, or from another site's page",
    ),
    "one_address": _of(
        429,
        "too many requests of this address wait here; try again in a moment",
        "one address has most of the places; `Retry-After` says when to try again",
    ),
    "busy": _of(
        503,
        "too many requests wait here; try again in a moment",
        "all places are taken; `Retry-After` says when to try again",
    ),
    "too_long": _of(504, "the request took too long", "longer than {seconds} s"),
    "no_explanation": _of(
        400,
        "explain is not possible here: {reason}",
        "the model cannot draw score maps on this server",
    ),
    "reload_failed": _of(
        500,
        "the model could not be loaded; the server's log says why, and the one before goes on",
        "`/reload` and a model that is missing or damaged",
    ),
    "failure": _of(
        500, "the server failed at this request; its log says why", "a fault of the server"
    ),
}

CLOSE = {"connection": "close"}
RETRY_SECONDS = 1
HEADERS: dict[str, dict[str, str]] = {
    "method_photos": {"allow": "POST"},
    "method_reload": {"allow": "POST"},
    "method_page": {"allow": "GET, HEAD"},
    "late": CLOSE,
    "pushed_out": CLOSE,
    "request_bytes": CLOSE,
    "one_address": {"retry-after": str(RETRY_SECONDS)} | CLOSE,
    "busy": {"retry-after": str(RETRY_SECONDS)} | CLOSE,
}


class Refusal(Exception):
    """A response other than the model's: the name of its kind, a status and one sentence."""

    def __init__(self, name: str, /, **fields: Any) -> None:
        kind = KINDS[name]
        super().__init__(kind.sentence.format(**fields))
        self.name = name
        self.status = kind.status
        self.headers = HEADERS.get(name, {})


def seen(text: object) -> str:
    """A client's word as a sentence may repeat it: in quotes, printable, at most MAX_SEEN
    characters."""
    word = str(text)
    return ascii(word if len(word) <= MAX_SEEN else f"{word[:MAX_SEEN]}...")


def table() -> str:
    """The refusals as a table in Markdown, by status."""
    lines = ["| status | sentence | when |", "|---|---|---|"]
    for kind in sorted(KINDS.values(), key=lambda kind: kind.status):
        sentence = kind.sentence.replace("{{", "{").replace("}}", "}").replace("|", "\\|")
        when = kind.when.format(seconds=60) if "{seconds}" in kind.when else kind.when
        lines.append(f"| {kind.status} | {sentence} | {when} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
