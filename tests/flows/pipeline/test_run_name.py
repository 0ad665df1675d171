"""A flow run is named by what it is, when it began and what it is about."""

from __future__ import annotations

import re

import pytest
from prefect import flow, runtime

from flows.pipeline.run_name import run_name


@flow(flow_run_name=run_name("reason", "missing"))
def nightly(reason: str) -> str:
    assert runtime.flow_run.parameters == {"reason": reason}
    return str(runtime.flow_run.name)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("reason", "ends"),
    [("by hand", r", by hand"), ("", ""), ("word " * 40, r", (word ){10,}\[\.\.\.\]")],
)
def test_a_run_is_named_by_flow_minute_and_parameters(reason: str, ends: str) -> None:
    assert re.fullmatch(rf"nightly \d{{4}}-\d\d-\d\d \d\d:\d\d{ends}", nightly(reason))
