"""What the addresses say of themselves: the entries of /openapi.json, and /docs, a page made of it.

FastAPI's own page loads its scripts from another host. This one has no script at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from starlette.responses import Response

from visage.server.refusals import KINDS
from visage.server.tables import SWITCHES

DESCRIPTION = "Photos in, predictions of every face out. Nothing that is sent is stored."


def _switch(name: str, default: bool, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": text,
        "schema": {"type": "boolean", "default": default},
    }


def _content(kind: str, schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"schema": schema}
    if example is not None:
        entry["example"] = example
    return {kind: entry}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    error = {"type": "object", "properties": {"error": {"type": "string"}}}
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        whens = [kind.when for kind in KINDS.values() if kind.status == status]
        found[status] = {
            "description": whens[0] if len(whens) == 1 else "one sentence says why",
            "content": _content("application/json", error),
        }
    return found


BINARY = {"type": "string", "format": "binary"}
NUMBER = {"type": "number"}
FACE = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("value", "std", "low", "high"), NUMBER),
        "probabilities": {"type": "array", "items": NUMBER},
        "box": {"type": "array", "items": NUMBER, "nullable": True},
        "landmarks": {"type": "array", "items": {"type": "array", "items": NUMBER}},
        "probability": NUMBER,
        "chosen": {"type": "boolean"},
        "score_map": {"type": "string", "description": "only with explain: a data: address (PNG)"},
        "score_map_corners": {
            "type": "array",
            "description": "only with explain: where the corners of the map lie in the photo, from "
            "top left clockwise",
            "items": {"type": "array", "items": NUMBER},
        },
    },
}
PREDICTIONS = {
    "type": "object",
    "properties": {
        "predictions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "model": {"type": "object"},
                    "quantity": {"type": "string"},
                    "unit": {"type": "string"},
                    "labels": {"type": "object"},
                    "photo": {"type": "object"},
                    "faces": {"type": "array", "items": FACE},
                    "reason": {"type": "string", "nullable": True},
                },
            },
        }
    },
}
_ANSWER = {
    200: {
        "description": "a document for each photo, in order; a photo without a face has a reason",
        "content": _content("application/json", PREDICTIONS),
    }
}
_FORM = {
    "type": "object",
    "required": ["photo"],
    "properties": {"photo": {"type": "array", "items": BINARY}},
}
_ROWS = {
    "type": "object",
    "properties": {
        "dataframe_records": {
            "type": "array",
            "items": {"type": "object", "properties": {"photo": {"type": "string"}}},
        },
        "params": {
            "type": "object",
            "properties": {name: {"type": "boolean"} for name in SWITCHES},
        },
    },
}
_EXAMPLE = {"dataframe_records": [{"photo": "<base64>"}], "params": {"all_faces": True}}


def _page(summary: str, kind: str = "application/json") -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {200: {"description": summary, "content": _content(kind, {})}},
    }


ROUTES: dict[str, dict[str, Any]] = {
    "POST /predict": {
        "summary": "Photos as a form or as they are: every face with value and interval",
        "description": "curl -F photo=@x.jpg -F photo=@y.png localhost:5001/predict, or one "
        "picture as the body: curl --data-binary @x.jpg -H 'Content-Type: image/jpeg' "
        "localhost:5001/predict",
        "openapi_extra": {
            "parameters": [
                _switch("all_faces", True, "every face, or the one that training would have taken"),
                _switch("flip", True, "average the face with its mirror image"),
                _switch("explain", False, "add a picture of where the model looked"),
                _switch("distribution", True, "add the probability of each label"),
            ],
            "requestBody": {
                "required": True,
                "content": _content("multipart/form-data", _FORM)
                | _content("image/jpeg", BINARY)
                | _content("image/png", BINARY)
                | _content("image/webp", BINARY)
                | _content("image/avif", BINARY)
                | _content("image/heic", BINARY),
            },
        },
        "responses": _ANSWER | _refusals(400, 408, 413, 415, 429, 503, 504),
    },
    "POST /invocations": {
        "summary": "Photos or aligned faces as base64 in JSON, in MLflow's forms",
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": _content("application/json", _ROWS, _EXAMPLE),
            }
        },
        "responses": _ANSWER | _refusals(400, 408, 413, 415, 429, 503, 504),
    },
    "POST /reload": {
        "summary": "Take over the model that the name means now; from this machine only",
        "responses": {200: {"description": "as /ready, and whether the model changed"}}
        | _refusals(403, 500),
    },
    "GET /": _page("The page to try it with", "text/html"),
    "GET /monitor": _page("The page that shows how it is doing", "text/html"),
    "GET /model": _page("The model: config, card, terms, limits, published errors"),
    "GET /ready": _page("Which model and version answer"),
    "GET /statistics": _page("Requests, latency, values against training, drift, challengers"),
    "GET /metrics": _page("Counts for Prometheus", "text/plain"),
    "GET /ping": _page("Whether it lives"),
    "GET /health": _page("Whether it lives"),
    "GET /version": _page("The program's version", "text/plain"),
}


def docs_page(openapi: dict[str, Any]) -> Response:
    """/openapi.json as a page to read."""
    parts = []
    for path, methods in openapi["paths"].items():
        for method, entry in methods.items():
            parts.append(_operation(method.upper(), path, entry))
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(openapi["info"]["title"])}: addresses</title>
<link rel="icon" href="pages/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="pages/style.css">
</head>
<body>
<header class="bar">
<a class="wordmark" href="./"><img src="pages/icon.svg" alt="" width="28" height="28">visage</a>
<nav aria-label="Pages">
<a href="./">Photos</a>
<a href="monitor">Monitor</a>
<a href="docs" aria-current="page">API</a>
</nav>
</header>
<main>
<h1>{escape(openapi["info"]["title"])} {escape(openapi["info"]["version"])}</h1>
<p>{escape(DESCRIPTION)} For programs: <a href="openapi.json">/openapi.json</a>.</p>
{"".join(parts)}
</main>
</body>
</html>
"""
    return Response(html, media_type="text/html; charset=utf-8")


def _operation(method: str, path: str, entry: dict[str, Any]) -> str:
    """One address."""
    lines = [f'<section class="pane address">\n<h2><code>{method} {escape(path)}</code></h2>']
    lines.append(f"<p>{escape(entry.get('summary', ''))}.</p>")
    if "description" in entry:
        lines.append(f"<p>{escape(entry['description'])}</p>")

    if "parameters" in entry:
        rows = []
        for each in entry["parameters"]:
            default = json.dumps(each["schema"].get("default"))
            rows.append((each["name"], default, each.get("description", "")))
        lines.append(_table(("switch", "default", "what it does"), rows))
    bodies = entry.get("requestBody", {}).get("content", {})
    if bodies:
        kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in bodies)
        lines.append(f"<p>Body: {kinds}</p>")
    examples = [content["example"] for content in bodies.values() if "example" in content]
    lines += [f"<pre>{escape(json.dumps(example))}</pre>" for example in examples]

    answers = []
    for status, response in entry.get("responses", {}).items():
        kinds = ", ".join(response.get("content", {}))
        answers.append((status, kinds, response["description"]))
    lines.append(_table(("status", "type", "answer"), answers))
    return "\n".join(lines) + "\n</section>\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = [f"<table>\n<thead><tr>{cells}</tr></thead>\n<tbody>"]
    for row in rows:
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join(lines) + "\n</tbody>\n</table>"
