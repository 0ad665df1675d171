"""Sigma as a function of the label: its fit, its bounds, and which rows it fills."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stages.ingest.records import ManifestRow
from stages.ingest.sigma import SigmaRule, fitted_rule, main
from stages.settings import convert
from visage.data.schemas import MANIFEST_SCHEMA


def test_the_fit_finds_the_polynomial_that_made_the_sigmas() -> None:
    label_N = np.linspace(0, 85, 200)
    sigma_N = 2 + 0.08 * label_N - 0.0006 * label_N**2 + 2e-6 * label_N**3
    rule = fitted_rule(label_N, sigma_N, 3)
    for label, sigma in zip(label_N, sigma_N, strict=True):
        assert rule.of(float(label)) == pytest.approx(sigma, abs=1e-3)
    assert rule.of(-500) == rule.minimum == pytest.approx(sigma_N.min(), abs=1e-4)
    assert rule.of(5000) == rule.maximum == pytest.approx(sigma_N.max(), abs=1e-4)


def test_only_values_without_a_sigma_are_filled() -> None:
    rule = SigmaRule(polynomial=(1.0, 0.1), minimum=0.5, maximum=4.0)
    row = ManifestRow("a.jpg", 20.0, None, None, None, None, None)
    rows = [
        row,
        row._replace(label=90.0),
        row._replace(sigma=7.0),
        row._replace(label=None),
        row._replace(half_width=4.0),
    ]
    assert [each.sigma for each in rule.rows(iter(rows))] == [3.0, 4.0, 7.0, None, None]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"polynomial": []}, "one coefficient at least"),
        ({"minimum": 0.0}, "must be above 0"),
        ({"minimum": 5.0}, "not above the second"),
    ],
)
def test_rules_that_mean_nothing_are_refused(changes: dict[str, object], said: str) -> None:
    plain = {"polynomial": [1.0], "minimum": 1.0, "maximum": 2.0} | changes
    with pytest.raises(ValueError, match=said):
        convert(plain, SigmaRule, "download.target.sigma")


def test_the_command_fits_training_photos_alone_and_prints_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for number in range(60):
        is_train = number % 2 == 0
        sigma = 1.0 + number / 20 if is_train else 50.0
        rows.append(
            {"label": float(number), "sigma": sigma, "split": "train" if is_train else "val"}
        )
    path = tmp_path / "manifest.parquet"
    empty = dict.fromkeys(MANIFEST_SCHEMA.names)
    pq.write_table(pa.Table.from_pylist([empty | row for row in rows], MANIFEST_SCHEMA), path)

    monkeypatch.setattr(sys, "argv", ["sigma", str(path), "--degree", "1"])
    main()
    found = yaml.safe_load(capsys.readouterr().out)["sigma"]
    rule = convert(found, SigmaRule, "sigma")
    assert rule.of(40.0) == pytest.approx(3.0, abs=1e-3)

    monkeypatch.setattr(sys, "argv", ["sigma", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert (
        "30 training photos have a label and a sigma, degree 3 wants 40" in capsys.readouterr().err
    )
