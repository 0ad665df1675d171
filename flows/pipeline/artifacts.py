"""What a reproduction shows in Prefect's pages: metrics, plots, the data's quality, and where
MLflow keeps the run."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.pipeline.stage_outputs import StageOutputs
from stages.settings import read_json

# Prefect keeps a picture in its database.
MAX_PICTURE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """Where MLflow keeps a run."""

    run_id: str
    experiment_id: str
    tracking_uri: str


def show_results(outputs: StageOutputs) -> None:
    """Shows the metrics, one table for each stage that measures, and every plot."""
    for stage, path in outputs.metrics.items():
        if path.is_file():
            rows = metric_rows(read_json(path))
            create_table_artifact(
                key=_key("metrics", stage), table=rows, description=f"{path.name} of {stage}"
            )

    for folder in outputs.plots:
        for picture in sorted(folder.glob("*.png")):
            if picture.stat().st_size <= MAX_PICTURE_BYTES:
                _show_picture(picture)


def metric_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric and list of faces: value and interval, as the stage wrote them."""
    return [
        {"faces": name, "metric": metric, **figure}
        for name, figures in document.items()
        for metric, figure in figures.items()
        if isinstance(figure, dict) and set(figure) == {"value", "low", "high"}
    ]


def _show_picture(picture: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    create_image_artifact(key=_key("plot", picture.stem), image_url=url, description=picture.name)


def show_quality(outputs: StageOutputs) -> None:
    """Shows what the checks found in each role's photos, passed or failed."""
    for role, path in outputs.quality.items():
        candidates = (path, path.with_suffix(".failed.json"))
        existing = [candidate for candidate in candidates if candidate.is_file()]
        if not existing:
            continue

        text = quality_text(role, read_json(existing[0]))
        create_markdown_artifact(
            key=_key("data-quality", role), markdown=text, description=f"Checks of {role}"
        )


def quality_text(role: str, document: Mapping[str, Any]) -> str:
    """A validation's result as a page: the verdict, then one line for each check."""
    verdict = "passed" if document["success"] else "**failed**: nothing was trained on these photos"
    lines = [
        f"# {role}: {verdict}",
        f"{document['photos']:,} photos, {document['quarantined']:,} of them quarantined.",
        "",
        "| check | policy | result | found |",
        "|---|---|---|---|",
    ]

    for check in document["checks"]:
        # A check that did not run has no finding.
        found = f"{check['found']:,}" if "found" in check else ""
        lines.append(f"| {check['check']} | {check['policy']} | {check['result']} | {found} |")

    return "\n".join(lines)


def show_run(run: RecordedRun) -> None:
    """Shows a link to the MLflow run; without a server, the command that shows it."""
    uri = without_secrets(run.tracking_uri)

    if uri.startswith(("http://", "https://")):
        link = f"{uri.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        create_link_artifact(key="mlflow-run", link=link, link_text=f"MLflow run {run.run_id}")
    else:
        place = uri if uri == run.tracking_uri else "$MLFLOW_TRACKING_URI"
        command = f"mlflow server --host 127.0.0.1 --backend-store-uri {place}"
        text = f"MLflow run `{run.run_id}` in `{uri}`. `{command}` shows it."
        create_markdown_artifact(key="mlflow-run", markdown=text)


def without_secrets(uri: str) -> str:
    """An address without its user and password: everyone with access to Prefect sees artifacts."""
    scheme, sign, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{sign}{host.rpartition('@')[2]}{slash}{path}"


def _key(kind: str, name: str) -> str:
    """An artifact's key: Prefect allows only lower-case letters, digits and dashes."""
    safe_name = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{kind}-{safe_name}"
