"""docs/library.md says what really happens; docs/api.md is what the docstrings say."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from docs import make_api
from tests.imports import REPOSITORY

PAGE = REPOSITORY / "docs" / "library.md"


def test_the_page_of_names_is_current() -> None:
    text = make_api.PAGE.read_text(encoding="utf-8")
    assert text == make_api.page(), "python docs/make_api.py writes it again"


def test_the_examples_give_what_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    text = PAGE.read_text(encoding="utf-8").replace("drawn.jpg", str(tmp_path / "drawn.jpg"))
    examples = doctest.DocTestParser().get_doctest(text, {}, "library.md", None, 0)
    assert len(examples.examples) >= 8
    output: list[str] = []
    failed, _ = doctest.DocTestRunner().run(examples, out=output.append)
    assert not failed, "".join(output)
