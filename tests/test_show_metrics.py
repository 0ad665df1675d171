"""The table at the end of `make demo` says what reports/metrics.json says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from docs.show_metrics import metrics_table
from tests.small_model import small_config


def test_every_list_is_a_column_and_every_metric_a_row(tmp_path: Path) -> None:
    mae, bias = {"value": 4.321, "low": 4.0, "high": 4.6}, {"value": -0.5, "low": -1.0, "high": 0.0}
    figures = {"num_faces": 1200, "mae": mae, "bias": bias}
    document = {
        "test": figures,
        "test_unseen": figures | {"num_faces": 1100},
        "decision": {"flip": True},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(document), encoding="utf-8")
    text = metrics_table(tmp_path / "metrics.json", small_config()).text()
    assert "1,200 faces" in text
    assert "1,100 faces" in text
    assert text.count("4.32 (4.00 to 4.60)") == 2
    assert text.count("-0.50 (-1.00 to 0.00)") == 2


def test_nothing_evaluated_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make demo"):
        metrics_table(tmp_path / "metrics.json", small_config())
