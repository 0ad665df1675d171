"""The scheduled job as people run it: `make deploy`'s server and worker in a working copy, on drawn
faces.

The schedule of prefect.yaml is set to seconds; everything else is what stands there.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.imports import REPOSITORY
from tests.services import free_port
from tests.test_pipeline import set_params, small, workspace
from visage.synthetic import DrawnSet, draw_set, read_labels

pytestmark = pytest.mark.slow
EVERY_SECONDS = 15
PATIENCE_SECONDS = 900.0


def nightly_copy(folder: Path) -> Path:
    """A small working copy whose schedule fires every few seconds, and whose margins let any
    challenger pass."""
    copy = workspace(folder, small)
    for name in ("flows", "model_registry"):
        shutil.copytree(
            REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "released")
        )
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    nightly = next(each for each in deployments["deployments"] if each["name"] == "nightly")
    nightly["schedules"] = [{"interval": EVERY_SECONDS}]
    deployments["deployments"] = [nightly]
    (copy / "prefect.yaml").write_text(yaml.safe_dump(deployments), encoding="utf-8")

    def lenient(params: dict[str, Any]) -> None:
        params["promote"] |= {name: 1000.0 for name in params["promote"] if name.startswith("max_")}

    set_params(copy, lenient)
    return copy


def bring_photos(inbox: Path) -> int:
    """New labelled photos in the watched folder, the table last; how many."""
    drawn = inbox.parent / "drawn"
    settings = DrawnSet(
        num_people=8,
        photos_per_person=2,
        px=128,
        seed=99,
        age_span_years=90.0,
        label_noise=1.0,
        dirt={},
    )
    draw_set(drawn, settings, num_workers=1)
    photos = list(read_labels(drawn))
    for photo in photos:
        (inbox / photo.photo_id).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn / photo.photo_id, inbox / photo.photo_id)
    with (inbox / ".labels.part").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["photo", "label", "person"])
        writer.writerows(
            (photo.photo_id, photo.apparent_age, f"new {photo.person}") for photo in photos
        )
    (inbox / ".labels.part").rename(inbox / "labels.csv")
    return len(photos)


@contextmanager
def deployed(copy: Path) -> Iterator[str]:
    """The server and worker of visage deploy; the address of the server's API."""
    port = free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(copy / ".prefect"),
        "PYTHONPATH": str(copy),
        "DVC_NO_ANALYTICS": "1",
    }
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (copy / "deploy.log").open("wb") as log:
        command = [sys.executable, "-m", "visage.cli", "deploy", "--port", str(port)]
        process = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield f"http://127.0.0.1:{port}/api"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)


def champion(copy: Path) -> int | None:
    """The version with the alias, from the copy's own registry."""
    name = yaml.safe_load((copy / "params.yaml").read_text(encoding="utf-8"))["package"]["model"]
    question = (
        "import sys; from model_registry.promote import champion; "
        "print(champion(sys.argv[1]) or '')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", question, name],
        cwd=copy,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(copy)},
    )
    return int(done.stdout) if done.stdout.strip() else None


def wait_for_champion(copy: Path, version: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while champion(copy) != version:
        assert time.monotonic() < deadline, (copy / "deploy.log").read_text(encoding="utf-8")[
            -4000:
        ]
        time.sleep(5)


def flow_runs(address: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{address}/flow_runs/filter", b'{"limit": 200}', {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        runs: list[dict[str, Any]] = json.load(answer)
    return runs


def test_the_schedule_fires_and_new_data_moves_the_alias(tmp_path: Path) -> None:
    copy = nightly_copy(tmp_path / "copy")
    with deployed(copy) as address:
        wait_for_champion(copy, 1)
        count = bring_photos(copy / "inbox" / "target")
        wait_for_champion(copy, 2)
        runs = [
            run
            for run in flow_runs(address)
            if run["start_time"] and run["state_type"] == "COMPLETED"
        ]
    assert sum(1 for path in (copy / "incoming/target/labelled").rglob("*.jpg")) == count
    spans = sorted((run["start_time"], run["end_time"]) for run in runs)
    assert len(spans) >= 2
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
