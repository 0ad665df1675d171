"""The body of POST /invocations: JSON in one of MLflow's four forms -> rows and switches.

    {"dataframe_records": [{"photo": "..."}]}        {"instances": [{"photo": "..."}]}
    {"dataframe_split": {"columns": ["photo"], "data": [["..."]]}}
    {"inputs": {"photo": ["..."]}}

`instances` and `inputs` may also be a list of texts, each a photo.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from visage.server.refusals import Refusal, seen

Row = dict[str, Any]
Document = dict[str, Any]

JSON = "application/json"
# The columns: a photo whose faces are to be found, or a face cropped as the model's config says
PHOTO = "photo"
FACE = "face"
# A face's landmarks: x and y of five points, ten numbers, in pixels of the crop
LANDMARKS = "landmarks"

FORMS = ("dataframe_records", "dataframe_split", "instances", "inputs")
SWITCHES = ("all_faces", "explain", "flip")
KNOWN = ", ".join(SWITCHES)

# Brackets, braces and commas of one row, and of what surrounds the rows, at most
SIGNS_OF_A_ROW = 16
SIGNS_AROUND = 64
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
WRITTEN_SURROGATE = re.compile(r"\\ud", re.IGNORECASE)


def check_json_type(headers: Mapping[str, str]) -> None:
    """415 for a body that is not plain JSON in UTF-8; what the headers say is named."""
    kind, _, rest = headers.get("content-type", "").partition(";")
    if kind.strip().lower() != JSON:
        raise Refusal("json_type", seen=type_phrase(kind))

    for parameter in filter(None, map(str.strip, rest.split(";"))):
        name, _, value = parameter.partition("=")
        plain = value.strip().strip("\"'").lower()
        if name.strip().lower() != "charset" or plain not in ("utf-8", "utf8", "us-ascii"):
            raise Refusal("charset", seen=seen(parameter))
    check_uncompressed(headers)


def type_phrase(kind: str) -> str:
    """A Content-Type as a sentence names it."""
    return f"of type {seen(kind.strip())}" if kind.strip() else "without a Content-Type"


def check_uncompressed(headers: Mapping[str, str]) -> None:
    """415 for a body that would have to be unpacked first."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal("compressed", seen=seen(encoding))


def parsed(body: bytes, max_items: int) -> tuple[list[Row], dict[str, bool]]:
    """A body -> its rows and switches; a Refusal for anything else."""
    # Too many rows are refused before parsing: a few bytes a row would become a hundred times as
    # much memory. base64 holds no bracket, brace or comma (a data: address one), so their number
    # bounds the rows, and how deep they are nested.
    signs = sum(map(body.count, (b"[", b"{", b",")))
    if signs > SIGNS_OF_A_ROW * max_items + SIGNS_AROUND:
        raise Refusal("many_items", limit=max_items)

    document = _json(body)
    if not isinstance(document, dict):
        raise Refusal("not_a_table", seen=f"it is {_kind(document)}")
    forms = [name for name in document if name in FORMS]
    others = [name for name in document if name not in (*FORMS, "params")]
    if others:
        raise Refusal("not_a_table", seen=f"it has {seen(others[0])}")
    if len(forms) != 1:
        raise Refusal("not_a_table", seen=f"it has {len(forms)} tables")

    [form] = forms
    rows = _ROWS[form](document[form], form)
    switches = _switches(document.get("params"))
    _check_columns(rows)
    return rows, switches


def switch_value(text: str) -> bool | None:
    """`true`, `false`, 1, 0, yes, no, on, off or nothing (a switch that is only named) -> its
    value; None for another text."""
    words = {"true": True, "1": True, "yes": True, "on": True, "": True}
    words |= {"false": False, "0": False, "no": False, "off": False}
    return words.get(text.strip().lower())


def _json(body: bytes) -> Any:
    if not body.strip():
        raise Refusal("not_json", reason="it is empty")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal("not_json", reason=f"byte {error.start} is not UTF-8") from error

    # ValueError: not JSON, or a number of thousands of digits
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}"
        raise Refusal("not_json", reason=reason) from error
    except RecursionError as error:
        raise Refusal("not_json", reason="too deep") from error
    except ValueError as error:
        raise Refusal("not_json", reason="a number with too many digits") from error

    if WRITTEN_SURROGATE.search(text) and _has_lone_surrogate(document):
        raise Refusal("not_unicode")
    return document


def _has_lone_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return LONE_SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_has_lone_surrogate(part) for part in (*value, *value.values()))
    return isinstance(value, list) and any(map(_has_lone_surrogate, value))


def _kind(value: Any) -> str:
    """What a JSON value is, for a sentence."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "a number")


def _from_records(value: Any, form: str) -> list[Row]:
    if not isinstance(value, list):
        raise Refusal("table", form=form, reason=f"it is {_kind(value)} and not a list")
    for number, row in enumerate(value):
        if not isinstance(row, dict):
            reason = f"row {number} is {_kind(row)} and not an object"
            raise Refusal("table", form=form, reason=reason)
    return value


def _from_list(value: Any, form: str) -> list[Row]:
    """Objects, or texts that are photos."""
    if isinstance(value, list) and value and all(isinstance(row, str) for row in value):
        return [{PHOTO: text} for text in value]
    return _from_records(value, form)


def _from_split(value: Any, form: str) -> list[Row]:
    if not isinstance(value, dict):
        raise Refusal("table", form=form, reason=f"it is {_kind(value)} and not an object")
    columns = value.get("columns")
    data = value.get("data")
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise Refusal("table", form=form, reason="it has no list of columns")
    if len(set(columns)) != len(columns):
        raise Refusal("table", form=form, reason="a column is there twice")
    if not isinstance(data, list):
        raise Refusal("table", form=form, reason="it has no list of data")

    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(columns):
            cells = f"{len(row)} cells" if isinstance(row, list) else "no list"
            reason = f"row {number} has {cells} for {len(columns)} columns"
            raise Refusal("table", form=form, reason=reason)
    return [dict(zip(columns, row, strict=True)) for row in data]


def _from_inputs(value: Any, form: str) -> list[Row]:
    """Columns by name, a single row's values by name, or what `_from_list` takes."""
    if not isinstance(value, dict):
        return _from_list(value, form)
    if value and not any(isinstance(column, list) for column in value.values()):
        return [value]

    lengths = set()
    for name, column in value.items():
        if not isinstance(column, list):
            reason = f"column {seen(name)} is {_kind(column)} and not a list"
            raise Refusal("table", form=form, reason=reason)
        lengths.add(len(column))
    if len(lengths) > 1:
        raise Refusal("table", form=form, reason="its columns are of unlike length")
    cells = zip(*value.values(), strict=True)
    return [dict(zip(value, row, strict=True)) for row in cells]


_ROWS = {
    "dataframe_records": _from_records,
    "dataframe_split": _from_split,
    "instances": _from_list,
    "inputs": _from_inputs,
}


def _switches(params: Any) -> dict[str, bool]:
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise Refusal("params", seen=f"it is {_kind(params)}")
    for name, value in params.items():
        check_switches([name], "params", SWITCHES)
        if type(value) is not bool:
            raise Refusal("params", seen=f"{seen(name)} is {_kind(value)}")
    return params


def check_switches(names: Collection[str], where: str, known: Collection[str]) -> None:
    """400 for a switch that nobody knows."""
    if unknown := sorted(set(names) - set(known)):
        raise Refusal("unknown_switch", where=where, seen=seen(unknown[0]), known=", ".join(known))


def _check_columns(rows: list[Row]) -> None:
    """400 that names the columns where no row has the right one."""
    if not rows or any(name in row for row in rows for name in (PHOTO, FACE)):
        return
    columns = sorted({name for row in rows for name in row})
    if not columns:
        raise Refusal("columns", seen="no column")
    named = ", ".join(map(seen, columns[:3])) + (", ..." if len(columns) > 3 else "")
    phrase = f"the column {named}" if len(columns) == 1 else f"the columns {named}"
    raise Refusal("columns", seen=phrase)
