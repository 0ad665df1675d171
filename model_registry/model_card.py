"""The model card, made of config.json and the evaluation: intended use, data, metrics, limits.

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
- A prediction is how old or attractive a face looks to the people who gave the labels. It is not a
  person's age or worth, it proves no age, and it must not decide anything about a person on its
  own.
- Faces unlike those of the training and test data (groups with few or no faces below, other
  cameras, strong pose, masks) may be misjudged without any sign of it.
- The interval holds its share over all faces of the test set; single groups are above or below it
  (see above)."""


def write_card(model: str, version: int) -> str:
    """Writes the card of a registered version into its run and into its description; returns the
    text."""
    client = connect()
    run_id = str(client.get_model_version(model, str(version)).run_id)

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder = fetch(f"models:/{model}/{version}", place / "model")
        config = ModelConfig.read(folder / CONFIG_FILE)
        metrics = json.loads(_artifact(run_id, METRICS, place).read_text(encoding="utf-8"))
        with _artifact(run_id, GROUPS, place).open(newline="", encoding="utf-8") as file:
            groups = list(csv.DictReader(file))

    text = card_text(config, metrics, groups, model, version)
    description = text
    if len(text) > MAX_DESCRIPTION:
        description = text[: MAX_DESCRIPTION - 60] + f"\n\n(the full text is in the run: {FILE})"
    patiently(lambda: client.log_text(run_id, text, FILE))
    patiently(lambda: client.update_model_version(model, str(version), description))
    return text


def _artifact(run_id: str, name: str, place: Path) -> Path:
    return Path(
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(place))
    )


def card_text(
    config: ModelConfig,
    metrics: Mapping[str, Any],
    groups: list[dict[str, str]],
    model: str,
    version: int,
) -> str:
    """The card as Markdown."""
    splits = {name: value for name, value in metrics.items() if name != "decision"}
    decision = metrics["decision"]

    head = (
        f"Network `{config.network.name}`, method `{config.method}`, decoded by the "
        f"{config.decode}; faces of {config.alignment.crop_px} px; "
        f"{config.weights.num_parameters} parameters. It predicts a value, a distribution and an "
        "80 % interval."
    )
    use = (
        f"Statistics and research on the {config.quantity} that faces show, and the tools around "
        "it."
    )
    rule = (
        f"Prediction rule: {decision['decode']}, mirror image averaged in: {decision['flip']}. "
        f"Intervals: {decision['interval']:.0%}, {decision['num_resamples']} bootstrap resamples."
    )
    lines = [
        f"# {model}, version {version}: {config.quantity} from a face, in {config.unit}",
        "",
        head,
        "",
        "## Intended use",
        "",
        use,
        "",
        "## Data and terms",
        "",
        config.terms,
        "",
        *_items(config.data),
        "",
        "## How well",
        "",
        rule,
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
        *_items(config.code),
        f"- weights: sha256 {config.weights.sha256}",
        "",
    ]
    return "\n".join(lines)


def _items(values: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {_as_text(value)}" for name, value in values.items()]


def _split_rows(splits: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, figures in splits.items():
        shown = [_figure(figures.get(metric)) for metric in SHOWN]
        yield [name, str(figures["num_faces"]), *shown]


def _group_rows(groups: list[dict[str, str]]) -> Iterator[list[str]]:
    first = groups[0]["list"] if groups else None
    named: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in groups:
        if row["list"] == first:
            figure = {name: float(row[name]) for name in ("value", "low", "high")}
            key = (row["attribute"], row["group"], row["num_faces"])
            named.setdefault(key, {})[row["metric"]] = figure

    for (attribute, group, num_faces), figures in named.items():
        shown = [_figure(figures.get(name)) for name in ("mae", "coverage_80")]
        yield [f"{attribute} {group}", num_faces, *shown]


def _figure(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _table(head: list[str], rows: Iterator[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)
