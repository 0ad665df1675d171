"""Names of flow runs that say what ran, when and on what, where Prefect would draw two words."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from textwrap import shorten

from prefect import runtime

# Of what stands behind the date; a reason may be sentences long.
MAX_ABOUT = 80


def run_name(*parameters: str) -> Callable[[], str]:
    """For `flow_run_name` of a flow: its name, the minute in which it started, and its values of
    `parameters`, such as "retrain 2026-03-01 03:00, by hand"."""

    def name() -> str:
        given = runtime.flow_run.parameters
        about = [str(given[parameter]) for parameter in parameters if given.get(parameter)]
        head = f"{runtime.flow_run.flow_name} {datetime.now().astimezone():%Y-%m-%d %H:%M}"
        return f"{head}, {shorten(', '.join(about), MAX_ABOUT)}" if about else head

    return name
