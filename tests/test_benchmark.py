"""`visage benchmark` on a small drawn set: it stops, goes on, becomes tables; and a
protocol of two folds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import flows.benchmark.flow
from flows.benchmark.grid import settings_of
from tests.command import visage

pytestmark = pytest.mark.slow


def small_set(folds: dict[str, Any]) -> dict[str, Any]:
    """All settings of a drawn set of a few hundred faces, trained for one epoch."""
    settings = settings_of("synthetic", {})
    for role, num_people in (("identity", 25), ("target", 50)):
        changes = {
            "num_people": num_people,
            "photos_per_person": 6,
            "age_span_years": 60.0,
            "dirt": {},
        }
        settings["download"][role]["options"] |= changes
        settings["validate"][role]["min_photos"] = {"train": 50}
    settings["pretrain"]["epochs"] = settings["finetune"]["epochs"] = 1
    settings["evaluate"]["num_resamples"] = 50
    return settings | folds


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command line in its own folder; gives its exit status, its results and its page."""
    monkeypatch.setattr(flows.benchmark.flow, "RESULTS", tmp_path / "results")

    def call(
        what: str, settings: dict[str, Any], *arguments: str
    ) -> tuple[int, dict[str, Any], str]:
        monkeypatch.setattr("flows.benchmark.grid.settings_of", lambda *_: settings)
        words = ["benchmark", "--file", what] if what.endswith(".yaml") else ["protocol", what]
        done = visage(*words, "--runs", tmp_path / "runs", *arguments)
        stem = tmp_path / "results" / Path(what).stem
        found = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))["sets"]["synthetic"]
            for path in stem.iterdir()
        }
        return (
            done.exit_code,
            found,
            stem.with_suffix(".md").read_text(encoding="utf-8"),
        )

    return call


def test_a_benchmark_goes_on_where_it_stopped(tmp_path: Path, command: Any) -> None:
    file = tmp_path / "small.yaml"
    tables = (
        "tables:\n"
        "  augmentation_pooling: {sets: [synthetic], seeds: [0]}\n"
        "  two_stage: {sets: [synthetic], seeds: [0]}\n"
    )
    file.write_text("sets: {synthetic: {}}\n" + tables)
    settings = small_set({})
    # Too little for BIF: its rows fail, all others stand.
    settings["baseline"]["max_feature_mb"] = 1
    status, found, text = command(str(file), settings, "--workers", "2")
    assert status == 1
    rows = {row["row"]: row for row in found["two_stage"]}
    assert rows["BIF, SVR"]["seeds"] == []
    assert rows["DLDL-v2"]["seeds"] == rows["CNN, BFGS-LDL"]["seeds"] == [0]
    assert "| BIF, SVR | not run |" in text
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("finetune-*/.done.json")
    }
    assert len(before) == 3
    settings["baseline"]["max_feature_mb"] = 4096
    status, found, text = command(str(file), settings)
    assert status == 0
    assert "not run" not in text
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("finetune-*/.done.json")
    }
    against = found["augmentation_pooling"][0]["against_reference"]
    assert against["num_faces"] == found["augmentation_pooling"][2]["num_faces"]


def test_a_protocol_adds_its_folds(command: Any) -> None:
    folds = {"folds": {"key": "download.target.split.fold", "values": [0, 1]}}
    settings = small_set(folds)
    settings["download"]["target"]["split"] |= {"assign": "folds", "num_folds": 2}
    status, found, text = command("synthetic", settings)
    assert status == 0
    [row] = found["protocol"]
    assert row["num_folds"] == 2
    assert row["num_faces"] == 300, "every photo is tested once"
    assert "1, 2 folds" in text
