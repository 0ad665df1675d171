"""The nightly job with a toy pipeline; everything else is real: Prefect, DVC, MLflow, the watched
folder.

The toy's model errs by as many years as the newest label in the watched table says.
"""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.blocks.webhook import Webhook

from flows import retrain as job
from flows.pipeline.workspace import Busy, only_one
from flows.reproduce import reproduce
from flows.retrain import retrain
from model_registry import promotion_gate
from model_registry.mlflow_client import connect
from model_registry.promote import champion, history
from tests.command import refused, visage
from tests.imports import REPOSITORY
from tests.model_registry.test_promote import RULES
from tests.small_faces import plain_settings
from tests.small_model import small_model

MODEL = "toy"
STAGE = """
import csv, json, pathlib, shutil, sys
from tests.model_registry.test_promote import predictions
stage, table = sys.argv[1], pathlib.Path("incoming/target/labelled/labels.csv")
errors = [float(row["label"]) for row in csv.DictReader(table.open())] if table.is_file() else [4.0]
for folder in ("data/target", "reports", "models"):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
if errors[-1] < 0:
    sys.exit("stages.download: labels.csv: the label is below 0")
if stage == "download":
    pathlib.Path("data/target/manifest.parquet").write_text(str(errors))
elif stage == "evaluate":
    mae = {"value": errors[-1], "low": errors[-1], "high": errors[-1]}
    decision = {"decode": "expectation", "flip": True, "interval": 0.95, "num_resamples": 9}
    metrics = {"test": {"num_faces": 200, "mae": mae}, "decision": decision}
    pathlib.Path("reports/metrics.json").write_text(json.dumps(metrics))
    header = "list,attribute,group,num_faces,metric,value,low,high\\n"
    pathlib.Path("reports/groups.csv").write_text(header)
    predictions(errors[-1]).to_parquet("reports/predictions.parquet")
else:
    shutil.copytree("given", "models/export", dirs_exist_ok=True)
"""
STAGES = {
    "download": (["incoming/target"], ["data/target/manifest.parquet"]),
    "evaluate": (
        ["data/target/manifest.parquet"],
        ["reports/groups.csv", "reports/predictions.parquet"],
    ),
    "export": (["given", "reports/predictions.parquet"], ["models/export"]),
}


class Hearing(http.server.BaseHTTPRequestHandler):
    """Keeps what is posted in the server's `heard`."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append(json.loads(body)["text"])  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def heard() -> Iterator[tuple[str, list[str]]]:
    """A webhook's address, and the messages that it got."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hearing) as server:
        server.heard = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", server.heard  # type: ignore[attr-defined]
        server.shutdown()


@pytest.fixture
def copy(
    local_registry: Path,
    prefect_server: str,  # noqa: ARG001
    heard: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A working copy with the toy pipeline, whose registry is empty."""
    local = local_registry
    Webhook(url=heard[0]).save("toy", overwrite=True)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")

    (local / "stage.py").write_text(STAGE, encoding="utf-8")
    stages = {
        name: {"cmd": f"python stage.py {name}", "deps": deps, "outs": outs}
        for name, (deps, outs) in STAGES.items()
    }
    stages["evaluate"]["metrics"] = [{"reports/metrics.json": {"cache": False}}]
    (local / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")

    real = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params = {
        "download": real["download"],
        "retrain": {"watch": {"target": "inbox"}, "experiment": "toy", "notify": "toy"},
        "package": real["package"] | {"model": MODEL},
        **plain_settings(promote=RULES),
    }
    params["labels"] = real["labels"] | params.get("labels", {})
    (local / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    (local / ".dvc" / "tmp").mkdir(parents=True)
    (local / ".dvc" / "config").write_text("[core]\n    no_scm = True\n", encoding="utf-8")
    (local / "incoming" / "target").mkdir(parents=True)
    small_model(local / "given")
    return local


def bring(copy: Path, *errors: float) -> None:
    """The watched table: a photo for each of the toy's errors, the newest last."""
    (copy / "inbox").mkdir(exist_ok=True)
    rows = [f"{number}.jpg,{error},p{number}" for number, error in enumerate(errors)]
    for row in rows:
        (copy / "inbox" / row.split(",")[0]).write_bytes(row.encode())
    (copy / "inbox" / "labels.csv").write_text(
        "\n".join(["photo,label,person", *rows, ""]), encoding="utf-8"
    )


def set_package(copy: Path, **values: int) -> None:
    params = yaml.safe_load((copy / "params.yaml").read_text(encoding="utf-8"))
    params["package"] |= values
    (copy / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def run(copy: Path) -> str:
    result: str = retrain("a test", copy)
    return result


@pytest.mark.slow
def test_nights_one_after_the_other(copy: Path, heard: tuple[str, list[str]]) -> None:
    assert run(copy) == "version 1 of toy is champion: there is no champion yet"
    assert run(copy) == "Nothing new: version 1 of toy was promoted (there is no champion yet)"
    (copy / "inbox").mkdir()  # the photos come before their table
    assert run(copy).startswith("Nothing new")
    client = connect()
    assert len(client.search_runs([client.get_experiment_by_name("toy").experiment_id])) == 1

    bring(copy, 6.0)
    assert run(copy).startswith(
        "version 2 of toy was refused, version 1 stays champion: MAE 6.000 against 4.000"
    )
    assert champion(MODEL) == 1
    assert run(copy).startswith("Nothing new: version 2 of toy was refused (MAE 6.000")

    bring(copy, 6.0, 3.0)
    assert run(copy).startswith(
        "version 3 of toy is champion: no worse than version 1 on 200 shared test faces"
    )
    assert champion(MODEL) == 3
    tags = client.get_model_version(MODEL, "3").tags
    assert tags["visage.reason"] == "a test"
    assert tags["visage.decided_against"] == "1"
    card = client.get_model_version(MODEL, "3").description
    assert "# toy, version 3: age from a face, in years" in card

    set_package(copy, max_photos=7)
    assert run(copy).startswith("version 4 of toy is champion")
    limits = json.loads(client.get_model_version(MODEL, "4").tags["visage.limits"])
    assert limits["max_photos"] == 7

    assert [text.split(":")[1] for text in heard[1]] == [
        " version 1 of toy is champion",
        " version 2 of toy was refused, version 1 stays champion",
        " version 3 of toy is champion",
        " version 4 of toy is champion",
    ]


@pytest.mark.slow
def test_a_failing_stage_is_reported_and_the_next_night_goes_on(
    copy: Path, heard: tuple[str, list[str]]
) -> None:
    bring(copy, -1.0)
    with pytest.raises(Exception, match="the label is below 0"):
        run(copy)
    assert "retraining (a test) failed" in heard[1][-1]
    assert "the label is below 0" in heard[1][-1]
    bring(copy, 4.0)
    assert run(copy).startswith("version 1 of toy is champion")


@pytest.mark.slow
@pytest.mark.parametrize("step", ["packaged", "compared"])
def test_one_that_died_between_register_and_alias_is_finished(
    copy: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """`packaged`: only the version exists. `compared`: the decision was made, the alias did not
    move."""
    module, function = (job, "compared") if step == "packaged" else (promotion_gate, "promote")

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(module, function, crash)
        with pytest.raises(KeyboardInterrupt):
            run(copy)
    assert champion(MODEL) is None
    assert run(copy) == "version 1 of toy is champion: there is no champion yet"
    assert [event["version"] for event in history(MODEL)] == [1]


def test_of_two_at_once_one_ends(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.commands.in_clone.ROOT", copy)
    with only_one(copy):
        state: Any = retrain("a test", copy, return_state=True)
        assert "in use by process" in refused("retrain")
        assert visage("reproduce").exit_code == 74
        with pytest.raises(Busy):
            reproduce(copy)

    assert state.is_cancelled()
    assert "in use by process" in state.message
    assert champion(MODEL) is None


@pytest.mark.slow
def test_a_webhook_that_is_not_there_fails_nothing(copy: Path) -> None:
    params = yaml.safe_load((copy / "params.yaml").read_text(encoding="utf-8"))
    params["retrain"]["notify"] = "nobody"
    (copy / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    shutil.rmtree(copy / "inbox", ignore_errors=True)
    assert run(copy).startswith("version 1 of toy is champion")
