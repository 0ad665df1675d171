"""Writes docs/api.md, the reference of the library's public names, from their docstrings.

python docs/make_api.py
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import visage
from visage.atomic import atomic_write_bytes
from visage.inference.loading import ReleasedModel

PAGE = Path(__file__).with_name("api.md")
HEAD = """# The library, name by name

Made from the docstrings by `python docs/make_api.py`. [library.md](library.md) shows how they are
used.
"""
FUNCTIONS = ("load", "models", "align")
CLASSES: tuple[tuple[str, type], ...] = (
    ("visage.Model", visage.Model),
    ("visage.PhotoPrediction", visage.PhotoPrediction),
    ("visage.FacePrediction", visage.FacePrediction),
    ("ReleasedModel", ReleasedModel),
    ("visage.LabelGrid", visage.LabelGrid),
    ("visage.PhotoError", visage.PhotoError),
)
# One line up to here, else a parameter a line
MAX_SIGNATURE = 88


def page() -> str:
    """The page's text."""
    parts = [HEAD]
    for name in FUNCTIONS:
        function = getattr(visage, name)
        parts.append(
            f"## visage.{name}\n\n{_code(f'visage.{name}', function)}\n\n{_text(function)}"
        )
    for name, cls in CLASSES:
        parts += _class(name, cls)

    methods = "\n".join(f"- `{name}`" for name in visage.METHODS)
    parts.append(
        "## visage.METHODS\n\nThe methods that a network can be trained with, by name (needs the "
        f"extra `torch`):\n\n{methods}"
    )
    parts.append("## visage.\\_\\_version\\_\\_\n\nThe package's version.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _class(name: str, cls: type) -> Iterator[str]:
    yield f"## {name}\n\n{_text(cls)}"
    if dataclasses.is_dataclass(cls):
        rows = []
        for field in dataclasses.fields(cls):
            kind = str(field.type).replace("|", "\\|")
            rows.append(f"| `{field.name}` | `{kind}` |")
        yield "\n".join(["| field | type |", "|---|---|", *rows])

    for method, value in vars(cls).items():
        if method.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"**`.{method}`** {_text(value)}"
        elif inspect.isfunction(value):
            yield f"{_code(f'.{method}', value)}\n\n{_text(value)}"


def _text(documented: Any) -> str:
    """The docstring of something public."""
    text = inspect.getdoc(documented)
    if not text:
        raise ValueError(f"{documented}: has no docstring; write one")
    return text


def _code(name: str, function: Any) -> str:
    """A function's signature as a block of code; annotations as they stand in the source."""
    signature = inspect.signature(function)
    words = []
    is_keyword_only = False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not is_keyword_only:
            is_keyword_only = True
            words.append("*")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        words.append(f"{parameter.name}: {parameter.annotation}{default}")

    end = f") -> {signature.return_annotation}"
    line = f"{name}({', '.join(words)}{end}"
    if len(line) > MAX_SIGNATURE:
        line = "\n".join([f"{name}(", *(f"    {word}," for word in words), end])
    return f"```python\n{line}\n```"


def main() -> None:
    """Writes the page."""
    atomic_write_bytes(PAGE, page().encode())


if __name__ == "__main__":
    main()
