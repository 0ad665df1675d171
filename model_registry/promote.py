"""The champion of a registered model: its alias is moved forward, moved back, and its history kept.

    visage history | visage promote VERSION | visage rollback      (flows/commands/registry.py)

The alias `champion` decides. Moving it is one atomic step, whatever fails before or after. Why a
version was promoted or refused (model_registry/promotion_gate.py decides) is written into the
version's tags before the alias moves. The history (tags of the registered model, one for each
event) is written after the alias moves, except for a rollback, whose event is written before: a
rollback that was interrupted and is run again must not return to the champion that it removed.
History and alias can differ, because a process died or somebody moved the alias by other means; the
next call then records what it found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from model_registry.mlflow_client import connect, patiently

CHAMPION, CHALLENGER = "champion", "challenger"
EVENT = "event."  # begins the tags of a registered model that hold its history

# Tags of a version
DECISION = "visage.decision"
REASONS = "visage.reasons"
AGAINST = "visage.decided_against"

MAX_TAG = 4900  # characters that MLflow's stores keep of a version's tag
# Events in a model's description, and characters of each one's reason: MLflow's stores keep 5000
MAX_EVENTS, MAX_REASON = 15, 200
PROMOTED, REFUSED = "promoted", "refused"


def version_with_alias(client: MlflowClient, model: str, alias: str) -> int | None:
    """The version that an alias names; None where it names none."""
    try:
        return int(client.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def champion(model: str) -> int | None:
    """The champion's version; None before the first promotion."""
    client = connect()
    return patiently(lambda: version_with_alias(client, model, CHAMPION))


def version_of(model: str, run_id: str) -> int | None:
    """The newest version of a run; None where the run has none."""
    found = connect().search_model_versions(f"name = '{model}' and run_id = '{run_id}'")
    return max((int(each.version) for each in found), default=None)


def decided(model: str, version: int) -> tuple[str, str] | None:
    """What was decided about a version, and why; None where its decision is still open."""
    tags = connect().get_model_version(model, str(version)).tags
    if DECISION not in tags:
        return None

    # The process died between the decision and the move of the alias.
    if tags[DECISION] == PROMOTED and not _was_champion(model, version):
        return None
    return tags[DECISION], tags[REASONS]


def promote(model: str, version: int, reason: str) -> None:
    """Makes the version champion, where it is not already."""
    client = connect()
    patiently(lambda: _existing(client, model, version))
    _reconcile(client, model)
    if champion(model) != version:
        patiently(lambda: client.set_registered_model_alias(model, CHAMPION, str(version)))
        add_event(client, model, PROMOTED, version, reason)


def rollback(model: str, reason: str = "by hand") -> int:
    """Makes the champion before this one champion again; returns its version. ValueError where
    there was none."""
    client = connect()
    _reconcile(client, model)

    before = _succession(history(model))[:-1]
    existing = [version for version in before if _exists(client, model, version)]
    if not existing:
        raise ValueError(f"{model}: no earlier champion to go back to; promote a version by hand")

    version = existing[-1]
    add_event(client, model, "rolled back to", version, reason)
    patiently(lambda: client.set_registered_model_alias(model, CHAMPION, str(version)))
    return version


def history(model: str) -> list[dict[str, Any]]:
    """Every event, oldest first: time, action, version, reason."""
    tags = connect().get_registered_model(model).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(EVENT)]


def _succession(events: list[dict[str, Any]]) -> list[int]:
    """The champions in order; a rollback removes those after the one it returns to."""
    line: list[int] = []
    for event in events:
        if event["action"] == "rolled back to":
            while line and line[-1] != event["version"]:
                line.pop()
        elif event["action"] != REFUSED:
            line.append(event["version"])
    return line


def _was_champion(model: str, version: int) -> bool:
    named = {event["version"] for event in history(model) if event["action"] != REFUSED}
    return version == champion(model) or version in named


def _reconcile(client: MlflowClient, model: str) -> None:
    """Adds a champion to the history that the history does not know."""
    line = _succession(history(model))
    now = champion(model)
    if now is not None and (not line or line[-1] != now):
        reason = "named by other means, or the step before was interrupted"
        add_event(client, model, "found as champion", now, reason)


def last_event(model: str) -> tuple[str, int] | None:
    """The newest event's action and version."""
    events = history(model)
    return (events[-1]["action"], events[-1]["version"]) if events else None


def add_event(client: MlflowClient, model: str, action: str, version: int, reason: str) -> None:
    """Adds an event to the model's history."""
    event = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "action": action, "version": version}
    text = json.dumps(event | {"reason": reason[: MAX_TAG - 200]}, ensure_ascii=False)
    patiently(lambda: client.set_registered_model_tag(model, f"{EVENT}{time.time_ns()}", text))
    patiently(lambda: client.update_registered_model(model, describe(history(model))))


def describe(events: list[dict[str, Any]]) -> str:
    """The model's page in MLflow as markdown: what the aliases mean, and the newest events, the
    newest first."""
    lines = [
        f"The version with the alias `{CHAMPION}` is served. The description of each version is "
        "its model card.",
        "",
        "| when | version | decision | why |",
        "|---|---|---|---|",
    ]

    for event in events[: -MAX_EVENTS - 1 : -1]:
        reason = " ".join(event["reason"].split()).replace("|", "\\|")
        when = event["time"][:16].replace("T", " ")
        cells = [when, str(event["version"]), event["action"], shorten(reason, MAX_REASON)]
        # Spaces that stay: MLflow's pages draw no gap between columns.
        lines.append(f"| {'&nbsp;&nbsp; | '.join(cells)} |")
    return "\n".join(lines)


def set_tags(client: MlflowClient, model: str, version: int, tags: Mapping[str, str]) -> None:
    """Sets tags of a version, cut to what MLflow's stores keep."""
    for key, value in tags.items():
        client.set_model_version_tag(model, str(version), key, value[:MAX_TAG])


def _existing(client: MlflowClient, model: str, version: int) -> None:
    if not _exists(client, model, version):
        raise ValueError(f"{model} has no version {version}; `make history` shows its champions")


def _exists(client: MlflowClient, model: str, version: int) -> bool:
    try:
        client.get_model_version(model, str(version))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
