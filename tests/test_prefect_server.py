"""The test session's Prefect server is a real one that keeps what flows leave."""

from __future__ import annotations

import asyncio

import pytest
from prefect import flow
from prefect.artifacts import Artifact, create_markdown_artifact


@flow
def leaves_a_word() -> str:
    create_markdown_artifact(key="word", markdown="hello")
    return "done"


@pytest.mark.usefixtures("prefect_server")
def test_a_flow_leaves_its_artifact_on_the_server() -> None:
    assert leaves_a_word() == "done"
    found = asyncio.run(Artifact.aget("word"))
    assert found is not None
    assert found.data == "hello"
