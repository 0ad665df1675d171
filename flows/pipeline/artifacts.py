"""What a reproduction shows in Prefect's pages: metrics, plots, the data's quality, and where
MLflow keeps the run."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.pipeline.stage_outputs import StageOutputs
from stages.settings import read_json
from visage.evaluation.bootstrap import Estimate
from visage.evaluation.html import title_of, with_interval

WHAT_RUN_HOLDS = "The MLflow run with settings, metrics, curves and reports of this result"

# Prefect keeps a picture in its database.
MAX_PICTURE_BYTES = 1 << 20

# Decimals of figures in label units
DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """Where MLflow keeps a run."""

    run_id: str
    experiment_id: str
    tracking_uri: str


def show_results(outputs: StageOutputs, unit: str) -> None:
    """Shows the metrics, one table for each stage that measures, and every plot."""
    for stage, path in outputs.metrics.items():
        if path.is_file():
            create_table_artifact(
                key=_key("metrics", stage),
                table=metric_rows(read_json(path), unit),
                description=f"Metrics of the stage {stage}, in brackets their intervals",
            )

    for folder in outputs.plots:
        for picture in sorted(folder.glob("*.png")):
            if picture.stat().st_size <= MAX_PICTURE_BYTES:
                _show_picture(picture)


def metric_rows(document: Mapping[str, Any], unit: str) -> list[dict[str, str]]:
    """One row a metric, one column a list of faces: value and interval, as in the report."""
    rows: dict[str, dict[str, str]] = {}

    for faces, figures in document.items():
        for metric, figure in figures.items():
            if isinstance(figure, dict) and set(figure) == {"value", "low", "high"}:
                # metrics.json has null where a figure is undefined
                numbers = {
                    end: math.nan if number is None else number for end, number in figure.items()
                }
                text = with_interval(metric, Estimate(**numbers), DIGITS)
                rows.setdefault(metric, {"metric": title_of(metric, unit)})[faces] = text

    return list(rows.values())


def _show_picture(picture: Path) -> None:
    """Shows a plot under the sentence that is its title."""
    with Image.open(picture) as image:
        title = image.info.get("Title", picture.name)
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    create_image_artifact(key=_key("plot", picture.stem), image_url=url, description=title)


def show_quality(outputs: StageOutputs) -> None:
    """Shows what the checks found in each role's photos, passed or failed."""
    for role, path in outputs.quality.items():
        candidates = (path, path.with_suffix(".failed.json"))
        existing = [candidate for candidate in candidates if candidate.is_file()]
        if not existing:
            continue

        text = quality_text(role, read_json(existing[0]))
        create_markdown_artifact(
            key=_key("data-quality", role),
            markdown=text,
            description=f"What was found in the photos of {role}",
        )


def quality_text(role: str, document: Mapping[str, Any]) -> str:
    """A validation's result as a page: the verdict, then one line for each check."""
    verdict = "passed" if document["success"] else "**failed**: nothing was trained on these photos"
    lines = [
        f"# {role}: {verdict}",
        f"{document['photos']:,} photos, {document['quarantined']:,} of them quarantined.",
        "",
        "| check | required | if not | result | found |",
        "|---|---|---|---|---|",
    ]

    for check in document["checks"]:
        # A check that did not run has no finding.
        found = f"{check['found']:,}" if "found" in check else ""
        cells = [check["check"], check["claim"], check["policy"], check["result"], found]
        lines.append(f"| {' | '.join(cells)} |")

    return "\n".join(lines)


def show_run(run: RecordedRun) -> None:
    """Shows a link to the MLflow run; without a server, the command that shows it."""
    uri = without_secrets(run.tracking_uri)

    if uri.startswith(("http://", "https://")):
        link = f"{uri.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        create_link_artifact(
            key="mlflow-run",
            link=link,
            link_text=f"MLflow run {run.run_id}",
            description=WHAT_RUN_HOLDS,
        )
    else:
        place = uri if uri == run.tracking_uri else "$MLFLOW_TRACKING_URI"
        command = f"mlflow server --host 127.0.0.1 --backend-store-uri {place}"
        text = f"MLflow run `{run.run_id}` in `{uri}`. `{command}` shows it."
        create_markdown_artifact(key="mlflow-run", markdown=text, description=WHAT_RUN_HOLDS)


def without_secrets(uri: str) -> str:
    """An address without its user and password: everyone with access to Prefect sees artifacts."""
    scheme, sign, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{sign}{host.rpartition('@')[2]}{slash}{path}"


def _key(kind: str, name: str) -> str:
    """An artifact's key: Prefect allows only lower-case letters, digits and dashes."""
    safe_name = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{kind}-{safe_name}"
