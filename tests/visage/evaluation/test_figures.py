"""The figures of the papers that commands draw: their numbers are the data's and the code's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.patches import StepPatch

from tests.small_faces import some_faces, write_faces
from visage.detection.align import template
from visage.evaluation import aligned_figure, framework_figure, label_figure
from visage.evaluation.label_figure import label_shares, read_labels

Main = Callable[[], None]


def run(monkeypatch: pytest.MonkeyPatch, main: Main, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["figure", *arguments])
    main()


def test_shares_of_labels_are_counts_of_their_bands() -> None:
    label_N = np.array([20.0, 21.0, 24.9, 25.0, 35.0])
    lower_G, share_G = label_shares(label_N, 5.0)
    assert lower_G.tolist() == [20, 25, 30, 35]
    assert share_G.tolist() == [0.6, 0.2, 0.0, 0.2]


def test_labels_of_several_sets_lie_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"label": [1.0, 1.0, math.nan, 8.0]}), manifest)
    assert read_labels(manifest).tolist() == [1, 1, 8]
    faces = write_faces(tmp_path / "faces", some_faces(4, 2, 1))
    assert len(read_labels(faces)) == 7

    sets = {"ours": read_labels(manifest), "others": read_labels(faces)}
    figure = label_figure.label_figure(sets, 1.0, "years")
    [axes] = figure.axes
    outline = axes.patches[0]
    assert isinstance(outline, StepPatch)
    first = outline.get_data()
    np.testing.assert_allclose(first.values, [2 / 3, 0, 0, 0, 0, 0, 0, 1 / 3])
    assert first.edges.tolist() == list(range(1, 10))
    assert "ours 1" in figure.get_suptitle()

    run(
        monkeypatch,
        label_figure.main,
        str(tmp_path / "l.png"),
        f"a={manifest}",
        f"b={faces}",
        "--unit",
        "years",
        "--width",
        "5",
    )
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("source", "said"), [("a=nowhere", "no manifest and no face shards"), ("nowhere", "NAME=PATH")]
)
def test_a_set_that_is_not_there_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, label_figure.main, "l.png", source, "--unit", "years", "--width", "5")
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "l.png").exists()


def test_the_framework_shows_the_networks_own_layers_and_the_losses_own_values() -> None:
    assert framework_figure.block_channels("thin") == [
        (32, 2),
        (64, 2),
        (128, 3),
        (256, 3),
        (256, 3),
    ]
    kl, value, error = framework_figure.losses()
    # Two normal distributions away from the ends of the grid: the closed form
    ratio = framework_figure.SIGMA_YEARS / framework_figure.PREDICTED_SIGMA_YEARS
    shift = framework_figure.PREDICTED_YEARS - framework_figure.LABEL_YEARS
    scaled = shift / framework_figure.PREDICTED_SIGMA_YEARS
    assert kl == pytest.approx((ratio**2 + scaled**2 - 1) / 2 - math.log(ratio), abs=1e-6)
    assert value == pytest.approx(framework_figure.PREDICTED_YEARS, abs=1e-6)
    assert error == pytest.approx(shift, abs=1e-6)
    [axes] = framework_figure.framework_figure().axes
    words = " ".join(text.get_text() for text in axes.texts)
    assert "3 x 256" in words
    assert f"L_ld = {kl:.2f}" in words


def test_aligned_faces_have_their_landmarks_near_the_template() -> None:
    figure = aligned_figure.aligned_figure((30.0,), 20)
    photo, aligned = figure.axes
    side = aligned_figure.CROP_PX
    wanted_52 = template(aligned_figure.TEMPLATE, side, aligned_figure.FACE_SCALE)
    [points] = aligned.lines
    assert np.abs(np.column_stack(points.get_data()) + 0.5 - wanted_52).max() < 0.1 * side
    assert np.shape(photo.images[0].get_array()) == (240, 240, 3)
    assert np.shape(aligned.images[0].get_array()) == (side, side, 3)


@pytest.mark.parametrize("module", [framework_figure, aligned_figure])
def test_figures_are_written_where_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    main: Main = module.main  # type: ignore[attr-defined]
    run(monkeypatch, main, str(tmp_path / "f.png"))
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
