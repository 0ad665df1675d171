"""The flow of a sweep: the inputs of finetune are made first, then the driver is started on them,
and its failure is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.artifacts import Artifact

import flows.sweep
from flows.scale_out.driver_process import DriverFailed
from flows.sweep.flow import sweep

STAGES: dict[str, Any] = {
    "align": {"cmd": "mkdir -p data/faces && echo aligned", "outs": ["data/faces"]},
    "pretrain": {
        "cmd": "mkdir -p backbone && echo trained",
        "deps": ["data/faces"],
        "outs": ["backbone"],
    },
    "baseline": {"cmd": "false", "deps": ["data/faces"], "outs": ["baseline"]},
    "finetune": {
        "cmd": "false --faces data/faces --backbone backbone --start start --model model",
        "outs": ["model"],
        "deps": ["data/faces", "backbone"],
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}), encoding="utf-8")
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "config").write_text(
        "[core]\n    no_scm = True\n    analytics = false\n", encoding="utf-8"
    )
    return tmp_path


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The arguments with which a driver was started; it writes a page."""
    words: list[Sequence[str]] = []

    def drive(
        module: str, given: Sequence[str], *, root: Path, kept: str, log: Callable[[str], None]
    ) -> None:
        words.append([module, *given])
        assert "kept" in kept
        log("an epoch")
        (root / "reports" / "sweep").mkdir(parents=True)
        (root / "reports" / "sweep" / "sensitivity.md").write_text("| lambda |", encoding="utf-8")

    monkeypatch.setattr(flows.sweep.flow, "drive", drive)
    return words


@pytest.mark.usefixtures("prefect_server")
def test_what_finetune_reads_is_made_and_nothing_else(
    root: Path, driven: list[Sequence[str]]
) -> None:

    assert sweep(root) == "| lambda |"
    [words] = driven
    assert " ".join(words) == (
        "flows.sweep.driver --params params.yaml --faces data/faces --backbone backbone "
        "--start start --results reports/sweep"
    )

    assert (root / "backbone").is_dir()
    assert not (root / "model").exists()
    artifact = asyncio.run(Artifact.aget("sweep"))
    assert artifact is not None
    assert artifact.data == "| lambda |"


@pytest.mark.usefixtures("prefect_server")
def test_a_driver_that_fails_fails_the_flow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drive(*_words: Any, **_others: Any) -> None:
        raise DriverFailed("was killed; run the same command again")

    monkeypatch.setattr(flows.sweep.flow, "drive", drive)
    with pytest.raises(DriverFailed, match="run the same command again"):
        sweep(root)
