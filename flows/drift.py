"""Checks whether the faces that are served still look like the training faces, and starts a
retraining if not.

    visage drift          (prefect.yaml runs it every hour)

It compares the server's /statistics (sums over its newest faces) with the champion's
reference.json, by visage.evaluation.drift. Beyond a threshold it runs the deployment in the
settings and notifies people, at most once a day for each champion. No photo and no face reaches
this process. Drift means that people send other faces, not that the predictions are worse: only
labels can show that, and without new labelled photos the retraining finds nothing new.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed

from flows.pipeline.notify import notify
from flows.pipeline.run_name import run_name
from flows.pipeline.workspace import ROOT
from model_registry.package import PackageSettings, fetch
from model_registry.promote import champion
from stages.settings import load_section, read_json
from visage.evaluation.drift import REFERENCE_FILE, Summary
from visage.evaluation.drift import drift as compared

STATISTICS_SECONDS = 10.0
STATISTICS_BYTES = 4_000_000  # the sums of 4,096 features take a twentieth


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """`url` is the server's. With fewer than `min_faces` served faces there is no decision. A
    measure above `max_value_psi` or `max_feature_distance` (visage.evaluation.drift) is drift. Then
    `deployment` (FLOW/NAME) runs, and the Prefect Webhook block `notify` gets a message; null for
    no message."""

    url: str
    min_faces: int
    max_value_psi: float
    max_feature_distance: float
    deployment: str
    notify: str | None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.url!r}: give the server's address, http:// or https://")
        if self.min_faces < 2:
            raise ValueError(f"min_faces is {self.min_faces}: give 2 at least")


@flow(name="drift", flow_run_name=run_name())
def drift(root: Path = ROOT) -> State[str]:
    """One check; its result is the state's message. ValueError, with the remedy, where nothing can
    be compared."""
    settings = load_section(root / "params.yaml", "drift", DriftSettings)
    model = load_section(root / "params.yaml", "package", PackageSettings).model
    version, reference = champion_reference(model)
    served = served_faces(settings.url)

    if served.weights != reference.weights:
        raise ValueError(
            f"{settings.url} answers with another model than version {version} of {model}, the "
            f"champion; start the server again (make serve)"
        )
    rows, beyond = measures(settings, reference, served)
    result = _decision(settings, f"version {version} of {model}", rows, beyond)

    create_table_artifact(key="drift", table=rows, description=result)
    get_run_logger().info(result)
    return Completed(message=result, data=result)


def champion_reference(model: str) -> tuple[int, Summary]:
    """The champion's version, and the summary of its training faces."""
    version = champion(model)
    if version is None:
        raise ValueError(f"{model} has no champion; make retrain registers one")

    with tempfile.TemporaryDirectory() as folder:
        path = fetch(f"models:/{model}/{version}", Path(folder)) / REFERENCE_FILE
        if not path.is_file():
            raise ValueError(
                f"version {version} of {model} has no {REFERENCE_FILE}: it was exported before "
                f"drift was measured; export and register it again (make retrain)"
            )
        where = f"{REFERENCE_FILE} of version {version} of {model}"
        return version, Summary.from_document(read_json(path), where)


def served_faces(url: str) -> Summary:
    """The server's summary of its newest faces."""
    address = f"{url.rstrip('/')}/statistics"

    try:
        with urllib.request.urlopen(address, timeout=STATISTICS_SECONDS) as answer:
            body = answer.read(STATISTICS_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise ValueError(
                f"{address}: {error}; it must be visage's own server (make serve)"
            ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"{address}: no answer ({error}); start the server (make serve), or set drift.url in "
            f"params.yaml to where it listens"
        ) from error

    if len(body) > STATISTICS_BYTES:
        raise ValueError(
            f"{address}: more than {STATISTICS_BYTES} bytes; it must be visage's own server (make "
            f"serve)"
        )
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{address}: not JSON; it must be visage's own server (make serve)"
        ) from error
    return Summary.from_document(document, address)


def measures(
    settings: DriftSettings, reference: Summary, served: Summary
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a table, and a phrase for each measure beyond its threshold. With too few faces
    the table has only their number."""
    num_faces = served.totals().num_faces
    rows: list[dict[str, Any]] = [
        {"measure": "faces served", "found": num_faces, "threshold": settings.min_faces}
    ]
    if num_faces < settings.min_faces:
        return rows, []

    found = compared(reference, served)
    means = f"mean {found.value_mean:.2f}, in training {found.reference_value_mean:.2f}"
    measures = [
        (f"predicted values ({means})", found.value_psi, settings.max_value_psi),
        ("features", found.feature_distance, settings.max_feature_distance),
    ]

    beyond = []
    for name, value, limit in measures:
        rows.append({"measure": name, "found": round(value, 4), "threshold": limit})
        if value > limit:
            beyond.append(f"{name} by {value:.3g}, more than {limit:g}")
    return rows, beyond


def _decision(
    settings: DriftSettings, version: str, rows: list[dict[str, Any]], beyond: list[str]
) -> str:
    """The table in a sentence. Where it shows drift, the retraining is started and people get a
    message."""
    num_faces = rows[0]["found"]
    if num_faces < settings.min_faces:
        return (
            f"{num_faces} faces served by {version}: nothing is decided on fewer than "
            f"{settings.min_faces}"
        )
    if not beyond:
        return f"the {num_faces} faces served last look like the training faces of {version}"

    reason = (
        f"drift: the {num_faces} faces served last differ from the training faces of {version} in "
        + ", and in ".join(beyond)
    )
    if not started(settings.deployment, f"drift of {version}", reason):
        return f"{reason}; {settings.deployment} was started for it earlier today"

    result = (
        f"{reason}; {settings.deployment} was started, which needs new labelled photos to change "
        f"anything"
    )
    notify(settings.notify, f"visage: {result}")
    return result


def started(deployment: str, cause: str, reason: str) -> bool:
    """Runs a deployment, at most once a day for each cause; False where it ran for it before."""
    own_name = f"drift {runtime.flow_run.get_id()}"

    try:
        run: Any = run_deployment(
            deployment,
            parameters={"reason": reason},
            timeout=0,
            as_subflow=False,  # the retraining outlives this flow
            flow_run_name=own_name,
            idempotency_key=f"{cause}, {datetime.now(UTC):%Y-%m-%d}",
        )
    except ObjectNotFound as error:
        raise ValueError(
            f"{reason}, and there is no deployment {deployment!r} to run; make deploy registers "
            f"those of prefect.yaml, drift.deployment in params.yaml names one"
        ) from error

    # For an idempotency key that was used before, Prefect returns the earlier run.
    return bool(run.name == own_name)
