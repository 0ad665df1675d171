"""The model card as people read it: names, numbers and units, no raw keys."""

from __future__ import annotations

from model_registry.model_card import card_text
from tests.small_model import small_config

SHARE = {"value": 0.8241, "low": 0.7894, "high": 0.8596}
MAE = {"value": 5.768, "low": 5.311, "high": 6.224}
METRICS = {
    "test": {"num_faces": 1455, "mae": MAE, "coverage_80": SHARE},
    "decision": {
        "decode": "expectation",
        "flip": True,
        "interval": 0.95,
        "num_resamples": 2000,
    },
}
GROUP = {"list": "test", "attribute": "age", "group": "0-9", "num_faces": "45", "metric": "mae"}


def test_card_is_written_for_people() -> None:
    data = {"train": {"num_faces": 1760, "sha256": "4bc1"}}
    code = {"git_commit": "50fb"}
    group = GROUP | {"value": "2.292", "low": "1.613", "high": "3.051"}
    text = card_text(small_config(data=data, code=code), METRICS, [group], "toy", 3)
    shown = text.replace("&nbsp;", "")

    assert text.startswith("# toy, version 3: age from a face, in years\n")
    assert "- train: 1,760 faces, sha256 `4bc1`" in text
    assert "- git commit: `50fb`" in text
    assert "MAE and RMSE in years" in text
    assert "averaged over the face and its mirror image" in text
    assert (
        "| test (1,455 faces) | 5.768 (5.311 to 6.224) | - | - | - | 82.4% (78.9% to 86.0%) |"
        in (shown)
    )
    assert "| age 0-9 (45 faces) | 2.292 (1.613 to 3.051) | - |" in shown


def test_columns_of_its_tables_stay_apart() -> None:
    """MLflow's pages put no space between the columns of a table."""
    text = card_text(small_config(), METRICS, [], "toy", 3)
    [row] = [line for line in text.splitlines() if line.startswith("| test ")]
    assert row.count("&nbsp;&nbsp; |") == 5
