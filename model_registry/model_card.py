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
SHARES = ("cs_5", "coverage_80")
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
        f"Network `{config.network.name}` of {config.weights.num_parameters:,} parameters, method "
        f"`{config.method}`, decoded by the {config.decode}; faces of "
        f"{config.alignment.crop_px} px. It predicts a value, a distribution and an 80% interval."
    )
    use = (
        f"Statistics and research on the {config.quantity} that faces show, and the tools around "
        "it."
    )
    views = "averaged over the face and its mirror image" if decision["flip"] else "one view"
    rule = (
        f"Prediction: {decision['decode']} of the distribution, {views}. MAE and RMSE in "
        f"{config.unit}. In brackets {decision['interval']:.0%} intervals of "
        f"{decision['num_resamples']:,} bootstrap resamples."
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
        *_data_items(config.data),
        "",
        "## How well",
        "",
        rule,
        "",
        *_table(["faces of", *SHOWN.values()], _split_rows(splits)),
        "",
        "By group, of the first list:",
        "",
        *_table(["group", SHOWN["mae"], SHOWN["coverage_80"]], _group_rows(groups)),
        "",
        "## Limits",
        "",
        LIMITS,
        "",
        "## Where it comes from",
        "",
        *_items(config.code),
        f"- weights: sha256 `{config.weights.sha256}`",
        "",
    ]
    return "\n".join(lines)


def _items(values: Mapping[str, Any]) -> list[str]:
    return [f"- {name.replace('_', ' ')}: `{value}`" for name, value in values.items()]


def _data_items(data: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """- train: 1,760 faces, sha256 `4bc1...`"""
    lines = []
    for name, about in data.items():
        others = [f"{key} `{value}`" for key, value in about.items() if key != "num_faces"]
        lines.append(f"- {name}: " + ", ".join([f"{about['num_faces']:,} faces", *others]))
    return lines


def _split_rows(splits: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, figures in splits.items():
        shown = [_figure(metric, figures.get(metric)) for metric in SHOWN]
        yield [f"{name} ({figures['num_faces']:,} faces)", *shown]


def _group_rows(groups: list[dict[str, str]]) -> Iterator[list[str]]:
    first = groups[0]["list"] if groups else None
    named: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in groups:
        if row["list"] == first:
            figure = {name: float(row[name]) for name in ("value", "low", "high")}
            key = (row["attribute"], row["group"], row["num_faces"])
            named.setdefault(key, {})[row["metric"]] = figure

    for (attribute, group, num_faces), figures in named.items():
        shown = [_figure(name, figures.get(name)) for name in ("mae", "coverage_80")]
        yield [f"{attribute} {group} ({int(num_faces):,} faces)", *shown]


def _figure(metric: str, figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    form = ".1%" if metric in SHARES else ".3f"
    value, low, high = (figure[end] for end in ("value", "low", "high"))
    return f"{value:z{form}} ({low:z{form}} to {high:z{form}})"


def _table(head: list[str], rows: Iterator[list[str]]) -> list[str]:
    """A table whose cells end with spaces that stay: MLflow's pages draw no gap between columns."""
    lines = [f"| {'&nbsp;&nbsp; | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {'&nbsp;&nbsp; | '.join(cells)} |" for cells in rows]
