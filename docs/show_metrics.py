"""Prints the last evaluation as a table, and the paths of its results: the end of `make demo`.

    python docs/show_metrics.py

reports/metrics.json + models/calibrated/config.json -> text. Seconds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from visage.evaluation.bootstrap import Estimate
from visage.evaluation.html import Table, figures_table
from visage.evaluation.page import digits_of
from visage.model_config import CONFIG_FILE, ModelConfig

PLACES = {"report": "reports/report.html", "plots": "reports/plots", "model": "models/export"}


def metrics_table(metrics: Path, config: ModelConfig) -> Table:
    """Every metric with its interval, one column per list of faces."""
    if not metrics.is_file():
        raise ValueError(f"{metrics}: no such file; evaluate a model first (make demo)")
    document = json.loads(metrics.read_text(encoding="utf-8"))
    del document["decision"]

    columns: dict[str, dict[str, Estimate]] = {}
    for name, figures in document.items():
        estimates = {key: value for key, value in figures.items() if isinstance(value, dict)}
        columns[f"{name} ({figures['num_faces']:,} faces)"] = {
            metric: Estimate(**figure) for metric, figure in estimates.items()
        }

    title = f"{config.name}: {config.quantity} in {config.unit}"
    return figures_table(title, columns, config.unit, digits_of(config))


def main() -> None:
    """The command line; a missing evaluation ends it with one line and exit status 2."""
    repository = Path(__file__).resolve().parents[1]
    try:
        config = ModelConfig.read(repository / "models" / "calibrated" / CONFIG_FILE)
        print(metrics_table(repository / "reports" / "metrics.json", config).text(), end="\n\n")
    except ValueError as error:
        print(f"show_metrics: {error}", file=sys.stderr)
        raise SystemExit(2) from error

    for name, place in PLACES.items():
        print(f"{name:<8}{repository / place}")


if __name__ == "__main__":
    main()
