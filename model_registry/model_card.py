"""The model card that a person reads, made of config.json and the evaluation: what for, of what,
how well, what not.

After Mitchell et al. 2019, "Model Cards for Model Reporting". Every figure comes from the
evaluation's files.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow

from model_registry.mlflow_client import connect, patiently
from model_registry.package import fetch
from model_registry.record import GROUPS, METRICS
from visage.model_config import CONFIG_FILE, ModelConfig

FILE = "model_card.md"
MAX_DESCRIPTION = 4900  # characters that MLflow's stores keep
SHOWN = {
    "mae": "MAE",
    "rmse": "RMSE",
    "pearson": "Pearson",
    "cs_5": "CS@5",
    "coverage_80": "in the interval",
}
LIMITS = """\
- It tells what a face looks like to those who gave the labels, not a person's age or worth; it is no proof of age and
  must decide nothing about a person on its own.
- Faces unlike those it was trained and tested on (groups with few or no faces below, other cameras, strong pose, masks)
  may be misjudged without a sign of it.
- The interval holds its share over all faces of the test set; single groups lie above or below (see above)."""


def write_card(model: str, version: int) -> str:
    """Makes the card of a registered version, keeps it in its run and as its description; the text."""
    client = connect()
    run_id = str(client.get_model_version(model, str(version)).run_id)
    with tempfile.TemporaryDirectory() as place:
        folder = fetch(f"models:/{model}/{version}", Path(place) / "model")
        card = ModelConfig.read(folder / CONFIG_FILE)
        metrics, groups = (
            Path(
                mlflow.artifacts.download_artifacts(
                    run_id=run_id, artifact_path=name, dst_path=place
                )
            )
            for name in (METRICS, GROUPS)
        )
        with groups.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        text = card_text(
            card, json.loads(metrics.read_text(encoding="utf-8")), rows, model, version
        )
    patiently(lambda: client.log_text(run_id, text, FILE))
    described = (
        text
        if len(text) <= MAX_DESCRIPTION
        else text[: MAX_DESCRIPTION - 60] + f"\n\n(whole in the run: {FILE})"
    )
    patiently(lambda: client.update_model_version(model, str(version), described))
    return text


def card_text(
    card: ModelConfig,
    metrics: Mapping[str, Any],
    groups: list[dict[str, str]],
    model: str,
    version: int,
) -> str:
    """The card as Markdown."""
    splits = {name: value for name, value in metrics.items() if name != "decision"}
    decision = metrics["decision"]
    return "\n".join(
        [
            f"# {model}, version {version}: {card.quantity} from a face, in {card.unit}",
            "",
            f"Network `{card.network.name}`, method `{card.method}`, decoded by the {card.decode}; "
            f"faces of "
            f"{card.alignment.crop_px} px; {card.weights.num_parameters} parameters. It answers "
            f"with a "
            f"value, a "
            "distribution and an 80 % interval.",
            "",
            "## Intended use",
            "",
            f"Statistics and research on the {card.quantity} that faces show, and the tools around "
            f"it.",
            "",
            "## Data and terms",
            "",
            card.terms,
            "",
            *(f"- {name}: {_said(value)}" for name, value in card.data.items()),
            "",
            "## How well",
            "",
            f"Prediction rule: {decision['decode']}, mirror image averaged in: {decision['flip']}. "
            f"Intervals: "
            f"{decision['interval']:.0%}, {decision['num_resamples']} bootstrap resamples.",
            "",
            *_table(["faces of", "number", *SHOWN.values()], _split_rows(splits)),
            "",
            "By group (first list), MAE and coverage:",
            "",
            *_table(["group", "faces", SHOWN["mae"], SHOWN["coverage_80"]], _group_rows(groups)),
            "",
            "## Limits",
            "",
            LIMITS,
            "",
            "## Where it comes from",
            "",
            *(f"- {name}: {_said(value)}" for name, value in card.code.items()),
            f"- weights: sha256 {card.weights.sha256}",
            "",
        ]
    )


def _split_rows(splits: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, figures in splits.items():
        yield [name, str(figures["num_faces"]), *(_figure(figures.get(metric)) for metric in SHOWN)]


def _group_rows(groups: list[dict[str, str]]) -> Iterator[list[str]]:
    first = groups[0]["list"] if groups else None
    named: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in groups:
        if row["list"] == first:
            figure = {name: float(row[name]) for name in ("value", "low", "high")}
            named.setdefault((row["attribute"], row["group"], row["num_faces"]), {})[
                row["metric"]
            ] = figure
    for (attribute, group, num_faces), figures in named.items():
        yield [
            f"{attribute} {group}",
            num_faces,
            *(_figure(figures.get(name)) for name in ("mae", "coverage_80")),
        ]


def _figure(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _table(head: list[str], rows: Iterator[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)
