"""Every preset, laid over params.yaml, fits the settings of every stage that it touches."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.align import AlignSettings
from stages.download import DownloadSettings
from stages.evaluate import EvaluateSettings
from stages.finetune import FinetuneSettings
from stages.pretrain import PretrainSettings
from stages.settings import load_section, read_params, use_preset
from stages.validate import ValidateSettings
from tests.imports import REPOSITORY

PRESETS = sorted(path for path in (REPOSITORY / "presets").glob("*.yaml") if path.name != "drawn.yaml")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_fits_every_stage(preset: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    use_preset(REPOSITORY / "params.yaml", preset, params)
    for role in ("identity", "target"):
        load_section(params, "download", DownloadSettings, role)
        load_section(params, "validate", ValidateSettings, role)
        load_section(params, "align", AlignSettings, role)
    load_section(params, "pretrain", PretrainSettings)
    finetune = load_section(params, "finetune", FinetuneSettings)
    load_section(params, "evaluate", EvaluateSettings)
    labels = load_section(params, "validate", ValidateSettings, "target").labels
    assert labels is not None
    assert finetune.grid.minimum <= labels.minimum < labels.maximum <= finetune.grid.maximum


def test_folds_name_a_setting_that_is_there() -> None:
    for preset in PRESETS:
        folds = read_params(preset).get("folds")
        if folds is not None:
            place = read_params(preset)
            for key in folds["key"].split("."):
                place = place[key]
            assert place in folds["values"], preset
