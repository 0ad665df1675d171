"""docs/papers.md names files that exist and a test for each module; CITATION.cff is well formed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import visage
from tests.imports import REPOSITORY

PAGE = REPOSITORY / "docs" / "papers.md"
CODE = re.compile(
    r"`((?:visage|stages|flows|tests|bench|benchmarks|docs|model_registry)/[\w./-]+)`"
)
STATES = ("exact", "released", "differs", "partly", "missing", "added", "protocols", "private")


def rows() -> list[list[str]]:
    """Cells of the page's tables that name code."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) > 2 and row[1].startswith(STATES)]


def test_every_path_of_the_page_exists() -> None:
    named = CODE.findall(PAGE.read_text(encoding="utf-8"))
    assert len(named) > 80
    assert not [path for path in named if not (REPOSITORY / path).exists()]


def test_every_link_and_picture_of_the_page_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("https://")]
    assert len(local) > 5
    assert not [link for link in local if not (PAGE.parent / link.split("#")[0]).exists()]


def test_every_row_with_module_and_test_columns_fills_them() -> None:
    wide = [row for row in rows() if len(row) == 5]
    assert len(wide) > 35
    for what, state, module, test, _ in wide:
        assert CODE.fullmatch(module), what
        assert Path(module.strip("`")).suffix == ".py", what
        assert re.fullmatch(r"`tests/[\w/]+\.py`", test), what
        assert state, what


@pytest.fixture(scope="module")
def citation() -> dict[str, object]:
    text = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    document: dict[str, object] = yaml.safe_load(text)
    return document


def test_the_citation_has_what_cff_1_2_wants(citation: dict[str, object]) -> None:
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == visage.__version__
    references = citation["references"]
    assert isinstance(references, list)
    for reference in references:
        assert {"type", "title", "authors", "year"} <= set(reference)
        assert reference["type"] in ("article", "conference-paper")
        assert all(
            {"family-names", "given-names"} == set(author) for author in reference["authors"]
        )
        # `conference` is an entity, which needs a name
        assert "conference" not in reference or reference["conference"]["name"]


def test_the_page_links_every_paper_that_it_implements(citation: dict[str, object]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    references = citation["references"]
    assert isinstance(references, list)
    for reference in references:
        if "which DLDL-v2 builds on" not in reference["notes"]:
            assert reference["title"] in page
            assert reference.get("doi", reference.get("url")) in page
