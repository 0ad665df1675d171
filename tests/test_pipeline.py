"""All stages of the graph as DVC runs them, on few faces: drawn ones, and a few hundred real ones
where there are any.

The repository's own files are copied into a fresh git folder; smaller numbers in params.yaml are
all that changes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
Change = Callable[[dict[str, Any]], None]
COPIED = (
    "visage",
    "stages",
    "dvc.yaml",
    "params.yaml",
    "presets",
    "incoming",
    ".dvc",
    ".gitignore",
    ".dvcignore",
)
NUM_REAL = 300


def run(folder: Path, *command: str) -> str:
    """A command's output; its failure is the test's, with all it said."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def workspace(folder: Path, change: Change) -> Path:
    """A fresh git folder with this repository's pipeline and `change` made to its params."""
    folder.mkdir()
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(
                source,
                folder / name,
                ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache", "labelled*"),
            )
        elif source.exists():
            shutil.copy(source, folder / name)
    # Of models/ the empty folder alone: what this working copy trained stays here.
    for name in ("start", "members"):
        (folder / "models" / name).mkdir(parents=True)
        shutil.copy(REPOSITORY / "models" / name / ".gitkeep", folder / "models" / name)

    set_params(folder, change)
    run(folder, "git", "init", "-q")
    run(folder, "git", "config", "user.name", "t")
    run(folder, "git", "config", "user.email", "t@example.org")
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "as it is")


def set_params(folder: Path, change: Change) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(params)
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def small(params: dict[str, Any]) -> None:
    params["download"]["identity"]["options"] |= {"num_people": 8, "photos_per_person": 6}
    params["download"]["target"]["options"] |= {"num_people": 60, "photos_per_person": 2}
    params["download"]["target"]["options"]["dirt"] = {"duplicate": 1, "unreadable": 1}
    for role in ("identity", "target"):
        params["validate"][role]["min_photos"] = dict.fromkeys(
            params["validate"][role]["min_photos"], 1
        )
        params["align"][role]["num_workers"] = 0
    params["pretrain"] |= {"epochs": 1, "min_images_per_person": 2}
    params["finetune"] |= {"epochs": 1}
    params["calibrate"] |= {"min_faces": 4}
    params["baseline"] |= {"num_resamples": 50, "strengths": [1.0]}
    params["evaluate"] |= {"num_resamples": 50}
    params["explain"] |= {"max_faces": 4, "num_resamples": 50}


def stages_that_ran(output: str) -> set[str]:
    """All but `code`, which always runs, and `settings`, which runs when params.yaml changed."""
    lines = [line for line in output.splitlines() if line.startswith("Running stage")]
    return {line.split("'")[1] for line in lines} - {"code", "settings"}


def test_drawn_faces_end_to_end(tmp_path: Path) -> None:
    folder = workspace(tmp_path / "pipeline", small)
    ran = stages_that_ran(run(folder, "dvc", "repro"))
    roles = {
        f"{stage}@{role}"
        for stage in ("download", "validate", "align")
        for role in ("identity", "target")
    }
    assert ran == roles | {
        "pretrain",
        "baseline",
        "finetune",
        "fuse",
        "calibrate",
        "evaluate",
        "explain",
        "export",
    }

    metrics = json.loads((folder / "reports/metrics.json").read_text(encoding="utf-8"))
    assert (
        0
        < metrics["test"]["mae"]["low"]
        <= metrics["test"]["mae"]["value"]
        <= metrics["test"]["mae"]["high"]
        < 60
    )
    assert (folder / "reports/report.html").stat().st_size > 10_000
    assert (folder / "reports/explain/explain.html").stat().st_size > 10_000
    parity = json.loads((folder / "models/export/parity.json").read_text(encoding="utf-8"))
    assert parity["max_abs_difference"] <= 1e-4

    photo = next((folder / "data/raw/target").rglob("*.jpg"))
    command = (
        sys.executable,
        "-m",
        "visage.cli",
        "predict",
        "--json",
        str(photo),
        "--model",
        "models/export",
    )
    answer = json.loads(run(folder, *command))
    assert answer["model"]["name"] == "tiny-drawn-age"

    assert stages_that_ran(run(folder, "dvc", "repro")) == set()
    set_params(folder, lambda params: params["inference"].update(flip=False))
    assert stages_that_ran(run(folder, "dvc", "repro")) == {
        "fuse",
        "calibrate",
        "evaluate",
        "explain",
        "export",
    }
    calibration = json.loads((folder / "models/export/config.json").read_text(encoding="utf-8"))[
        "calibration"
    ]
    assert calibration["num_faces"] >= 4
    assert calibration["flip"] is False
    set_params(folder, lambda params: params["inference"].update(flip=True))
    assert stages_that_ran(run(folder, "dvc", "repro")) == set()  # from DVC's run cache

    preset = "labels: {band_width: 20.0}\n"
    (folder / "presets" / "wide.yaml").write_text(preset, encoding="utf-8")
    set_params(folder, lambda params: params.update(presets=["wide"]))
    assert stages_that_ran(run(folder, "dvc", "repro")) == {"baseline", "evaluate", "explain"}
    set_params(folder, lambda params: params.update(presets=[]))
    assert stages_that_ran(run(folder, "dvc", "repro")) == set()

    labelled = folder / "incoming/target/labelled"
    labelled.mkdir()
    shutil.copy(photo, labelled / "1.jpg")
    (labelled / "labels.csv").write_text("photo,label,person\n1.jpg,30,anna\n", encoding="utf-8")
    assert set(json.loads(run(folder, "dvc", "status", "--json"))) == {"code", "download@target"}
    shutil.rmtree(labelled)

    commit(folder)
    ran = stages_that_ran(run(folder, "dvc", "exp", "run", "-S", "finetune.loss.lambda_=0.5"))
    assert ran == {"finetune", "fuse", "calibrate", "evaluate", "explain", "export"}
    assert (
        yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))["finetune"]["loss"][
            "lambda_"
        ]
        == 0.5
    )
    changed = json.loads(run(folder, "dvc", "metrics", "diff", "--json"))["reports/metrics.json"]
    assert changed["test.mae.value"]["old"] == metrics["test"]["mae"]["value"]
    assert changed["test.mae.value"]["diff"] != 0
    run(folder, "dvc", "plots", "show")
    assert "predicted against true" in (folder / "dvc_plots/index.html").read_text(encoding="utf-8")


@pytest.mark.real_data
def test_real_faces_end_to_end(tmp_path: Path, shared_data: Path) -> None:
    """A few hundred of UTKFace through the adapter, the checks and the alignment to a model that
    predicts."""
    photos = tmp_path / "photos"
    with tarfile.open(shared_data / "utkface" / "UTKFace-part2.tar") as archive:
        members = [member for member in archive if member.isfile()]
        archive.extractall(photos, members[:: len(members) // NUM_REAL], filter="data")

    def real(params: dict[str, Any]) -> None:
        small(params)
        split = {
            "assign": "random",
            "group_by": "picture",
            "val_fraction": 0.1,
            "test_fraction": 0.3,
        }
        params["download"]["target"] |= {"source": "utkface", "locations": [str(photos)]}
        params["download"]["target"] |= {"options": {"protocol": "all_ages", "lists": {}}}
        params["download"]["target"]["split"] |= split
        params["validate"]["target"]["max_quarantined_fraction"] = 0.2
        params["align"]["target"] |= {"fallback": "frame"}

    folder = workspace(tmp_path / "pipeline", real)
    run(folder, "dvc", "repro")
    summary = json.loads((folder / "data/target/align.json").read_text(encoding="utf-8"))
    assert summary["num_photos"] > 0.9 * NUM_REAL
    assert summary["detection_rate"] > 0.95
    metrics = json.loads((folder / "reports/metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["num_faces"] > 0.2 * NUM_REAL
