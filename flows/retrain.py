"""The scheduled job: new labelled data becomes a challenger, and the champion if it is no worse.

    python -m flows.retrain [--reason TEXT]          (or: make retrain; prefect.yaml runs it every night)

look (flows/intake.py) -> reproduce and record (flows/reproduce.py) -> package -> compare -> promote or refuse
(model_registry/), each a Prefect task. Every step knows what is done already: a run that was killed anywhere is
finished by the next one, and with nothing new it ends in seconds. One process works in a working copy at a time; a
second one ends at once and says so. A champion is replaced only by a version that `promote` in params.yaml lets pass,
on the faces that are test for both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled, State

from flows.intake import Intake, look
from flows.notify import notify
from flows.reproduce import evidence, reproduce_stages, stale
from flows.workspace import ROOT, Busy, only_one
from stages.settings import load_section


@dataclass(frozen=True, kw_only=True)
class RetrainSettings:
    """`watch`: role -> folder or bucket (fsspec URL) with labels.csv and photos, null for a role without one.
    `experiment`: MLflow's. `notify`: name of a Prefect Webhook block that is told the outcome, null for nobody."""

    watch: Mapping[str, str | None]
    experiment: str
    notify: str | None


@flow
def retrain(reason: str = "by hand") -> str | State[str]:
    """One night's work in the working copy; returns the outcome in a sentence. `reason`: why now, for the record."""
    settings = load_section(ROOT / "params.yaml", "retrain", RetrainSettings)
    try:
        with only_one(ROOT):
            outcome = _retrain(settings, reason)
    except Busy as busy:
        return Cancelled(message=str(busy))
    get_run_logger().info(outcome)
    create_markdown_artifact(key="retrain", markdown=outcome, description="What the last retraining came to")
    return outcome
