"""Every preset, laid over the drawn set's settings: the stages take it, its parts fit together, and
so do its folds."""

from __future__ import annotations

import copy
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.align import AlignSettings
from stages.baseline import BaselineSettings
from stages.calibrate import CalibrateSettings
from stages.checks.settings import ValidateSettings
from stages.download import DownloadSettings
from stages.evaluate import EvaluateSettings
from stages.explain import ExplainSettings
from stages.export import ExportSettings
from stages.finetune import FinetuneSettings
from stages.presets import use_preset
from stages.pretrain import PretrainSettings
from stages.settings import convert, load_section
from tests.imports import REPOSITORY
from tests.test_verbs import PRESETS, drawn_settings

BY_ROLE = {"download": DownloadSettings, "validate": ValidateSettings, "align": AlignSettings}
ONCE = {
    "pretrain": PretrainSettings,
    "baseline": BaselineSettings,
    "finetune": FinetuneSettings,
    "calibrate": CalibrateSettings,
    "evaluate": EvaluateSettings,
    "explain": ExplainSettings,
    "export": ExportSettings,
}
FOLDS = {
    "utkface_all_ages": 5,
    "morph_80_20": 5,
    "morph_caucasian": 5,
    "morph_s1_s2_s3": 2,
    "fg_net": 82,
    "aaf": 5,
    "scut_fbp5500_folds": 5,
}


@pytest.fixture(scope="module", params=PRESETS)
def params(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """params.yaml as `make repro DATA=...` writes it."""
    path = tmp_path_factory.mktemp(request.param) / "params.yaml"
    use_preset(drawn_settings(), REPOSITORY / "presets" / f"{request.param}.yaml", path)
    return path


def load_all(params: Path) -> dict[str, Any]:
    """Section (and role) -> its settings."""
    found = {
        f"{name}.{role}": load_section(params, name, cls, role)
        for name, cls in BY_ROLE.items()
        for role in ("identity", "target")
    }
    return found | {name: load_section(params, name, cls) for name, cls in ONCE.items()}


def test_every_stage_takes_it_and_the_parts_fit(params: Path) -> None:
    found = load_all(params)
    target, finetune, pretrain = found["align.target"], found["finetune"], found["pretrain"]
    assert (target.crop_px, target.template) == (
        found["align.identity"].crop_px,
        found["align.identity"].template,
    )
    assert (pretrain.network, pretrain.normalise) == (finetune.network, finetune.normalise)
    baseline, evaluate = found["baseline"], found["evaluate"]
    for name in ("quantity", "grid", "fixed_sigma"):
        assert getattr(baseline, name) == getattr(finetune, name), (
            f"{name}: the baselines estimate what networks do"
        )
    for name in (
        "splits",
        "cs_thresholds",
        "decade_years",
        "epsilon_sigma",
        "with_dedup",
        "num_resamples",
        "interval",
    ):
        assert getattr(baseline, name) == getattr(evaluate, name), (
            f"{name}: both are measured alike"
        )
    labels = found["validate.target"].labels
    assert finetune.grid.minimum <= labels.minimum < labels.maximum <= finetune.grid.maximum
    options = found["download.target"].options
    if (
        found["download.target"].split.assign == "given"
        and "lists" in options
        and isinstance(options["lists"], list)
    ):
        assert {"train", "test"} <= {each["split"] for each in options["lists"]}


def test_every_fold_is_taken(params: Path) -> None:
    document = yaml.safe_load(params.read_text(encoding="utf-8"))
    name = params.parent.name[:-1]  # pytest numbers its folders
    assert (
        len(document["folds"]["values"]) == FOLDS[name]
        if name in FOLDS
        else "folds" not in document
    )
    if name not in FOLDS:
        return
    *sections, last = document["folds"]["key"].split(".")
    folds: list[DownloadSettings] = []
    for value in document["folds"]["values"]:
        changed = copy.deepcopy(document)
        section = reduce(lambda part, key: part[key], sections, changed)
        assert last in section, document["folds"]["key"]
        section[last] = value
        folds.append(convert(changed["download"]["target"], DownloadSettings, name))
    assert all(one != other for index, one in enumerate(folds) for other in folds[:index])
    if folds[0].split.assign != "given":
        assert len(folds) == folds[0].split.num_folds
