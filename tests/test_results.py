"""docs/results.md is what its command writes, and the command keeps runs, means and bars apart."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.presets import read_params
from tests.small_model import small_model
from visage.model_config import INTERVAL_MASS, CalibrationConfig

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "docs" / "results"


def load_make_results() -> Any:
    specification = importlib.util.spec_from_file_location(
        "make_results", REPOSITORY / "docs" / "make_results.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


make_results = load_make_results()


def test_results_are_rendered_from_the_tracked_files() -> None:
    written = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == make_results.render(RESULTS), "run: python docs/make_results.py render"


def finished_run(folder: Path, mae: float) -> Path:
    """A run's folder as evaluate leaves it, with one group."""
    calibration = CalibrationConfig(
        temperature=1.125, mass=INTERVAL_MASS, offset=-0.5, num_faces=664, flip=True
    )
    small_model(
        folder / "models" / "calibrated", training={"init": "backbone"}, calibration=calibration
    )
    figure = {"value": mae, "low": mae - 0.1, "high": mae + 0.1}
    share = {"value": 0.7, "low": 0.6, "high": 0.8}
    decision = {"decode": "expectation", "flip": True, "epsilon_sigma": 2.0}
    lists = {"test": {"num_faces": 3287, "num_rejected": 1, "mae": figure, "cs_5": share}}
    lists["test_unseen"] = {"num_faces": 3000, "mae": figure | {"value": mae + 0.05}}
    (folder / "reports" / "history").mkdir(parents=True)
    (folder / "reports" / "metrics.json").write_text(json.dumps(lists | {"decision": decision}))
    rows = [
        "list,attribute,group,num_faces,metric,value,low,high",
        "test,sex,female,1600,mae,4.5,4.4,4.6",
    ]
    rows += ["test,sex,female,1600,bias,-0.5,-0.6,-0.4", "test_unseen,sex,female,1500,mae,9,9,9"]
    (folder / "reports" / "groups.csv").write_text("\n".join(rows) + "\n")
    for stage, seconds in (("pretrain", 100), ("finetune", 500)):
        history = f"epoch,train_loss,val_mae,seconds\n1,2,6,{seconds}\n2,1,5,{seconds}\n"
        (folder / "reports" / "history" / f"{stage}.csv").write_text(history)
    shutil.copy(REPOSITORY / "params.yaml", folder / "params.yaml")
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(RESULTS / "published.json", folder)
    for fold, mae in enumerate((4.40, 4.50, 4.60)):
        run = finished_run(tmp_path / f"run{fold}", mae)
        kept = make_results.record(
            f"tiny-fold{fold}", run, "utkface_coral", "a note", "a small CPU, 2 cores"
        )
        (folder / f"tiny-fold{fold}.json").write_text(json.dumps(kept))
    return folder


def test_a_record_holds_what_was_set_and_no_place(results: Path) -> None:
    text = (results / "tiny-fold0.json").read_text()
    kept = json.loads(text)
    finetune = read_params(REPOSITORY / "params.yaml")["finetune"]
    assert kept["settings"]["finetune"]["recipe"]["name"] == finetune["recipe"]
    assert (
        kept["settings"]["finetune"]["recipe"]["optimiser"]
        == finetune["recipes"][finetune["recipe"]]["optimiser"]
    )
    assert kept["trainings"]["finetune"] == {
        "epochs": 2,
        "seconds": 1000,
        "train_loss": 1,
        "val_mae": 5,
    }
    assert [group["metric"] for group in kept["groups"]] == ["mae", "bias"]
    assert "locations" not in text
    assert str(results.parent) not in text


def test_runs_are_listed_best_first_with_intervals_time_and_hardware(results: Path) -> None:
    text = make_results.render(results)
    first = next(line for line in text.splitlines() if line.startswith("| tiny-fold"))
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[0] == "tiny-fold0"
    assert cells[2:] == [
        "pre-trained",
        "3,287",
        "4.40 (4.30 to 4.50)",
        "70.0% (60.0% to 80.0%)",
        "4.45 (4.30 to 4.50)",
        "20 min",
        "CPU",
    ]
    assert "| female | 1,600 | 4.50 (4.40 to 4.60) | -0.50 (-0.60 to -0.40) |" in text
    assert "a small CPU, 2 cores" in text
    assert "a note" in text
    assert (
        "Calibration on 664 validation faces: temperature 1.125, interval -0.50 years at both ends."
        in text
    )


def test_a_family_has_its_mean_with_a_student_interval(results: Path) -> None:
    """Three runs 0.1 apart: half-width 4.303 * 0.1 / sqrt(3)."""
    assert "`tiny`, 3 runs: mean MAE 4.50 (4.25 to 4.75, Student t)" in make_results.render(results)


def test_bars_are_met_missed_or_not_run(results: Path) -> None:
    text = make_results.render(results)
    assert "MAE at most 4.50. **Met by 0.10** (`tiny-fold0`, 4.40)." in text
    assert "MAE at most 4.23. **Not run.**" in text
    for fold in (0, 1):
        (results / f"tiny-fold{fold}.json").unlink()
    assert "MAE at most 4.50. **Missed by 0.10** (`tiny-fold2`, 4.60)." in make_results.render(
        results
    )


def test_a_protocol_that_nobody_described_is_refused(results: Path) -> None:
    kept = json.loads((results / "tiny-fold0.json").read_text()) | {"protocol": "secret"}
    (results / "tiny-fold0.json").write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="'secret'"):
        make_results.render(results)


def test_a_run_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics\.json: no such file"):
        make_results.record("x", tmp_path, "drawn", "", None)
