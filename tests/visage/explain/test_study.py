"""Groups of faces against averages of their members, however many batches they come in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.small_faces import some_faces, write_faces
from tests.small_model import small_config, small_network
from visage.data.face_table import FaceTable
from visage.evaluation.bootstrap import Bootstrap
from visage.explain import study
from visage.explain.score_map import score_map
from visage.explain.study import Subject, group_views, grouped
from visage.inference.photos import Model


@pytest.mark.parametrize("batch", [3, 64])
def test_groups_hold_the_averages_of_their_faces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(study, "BATCH_FACES", batch)
    config = small_config()
    table = FaceTable.open(write_faces(tmp_path, some_faces(10, 0, 0)), ["train"])
    network = small_network(config)
    subject = Subject(
        network=network,
        predictor=Model(network, config),
        table=table,
        raw=tmp_path,
        flip=True,
    )

    rows = np.array([0, 2, 3, 4, 6, 7, 9])
    grouping = grouped(table.label[rows], (), 25.0, config.grid.step)
    bootstrap = Bootstrap(num_resamples=5, interval=0.9, seed=0)
    everybody, *groups = group_views(subject, rows, grouping, 2, bootstrap)
    assert everybody.name == "all"
    assert len(groups) > 1

    crops = table.decode(rows)
    faces = crops.permute(0, 2, 3, 1).numpy() / 255
    scores = score_map(network, config, crops, flip=True).numpy()
    error = np.abs(subject.predictor.predict_crops(crops).value - table.label[rows])
    lower = np.floor(table.label[rows] / 25) * 25
    for group, value in zip([everybody, *groups], [None, *np.unique(lower)], strict=True):
        member = np.ones(len(rows), bool) if value is None else lower == value
        assert group.num_faces == member.sum()
        assert group.mae == pytest.approx(error[member].mean())
        np.testing.assert_allclose(group.face_HW3, faces[member].mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(
            group.score_HW, scores[member].mean(axis=0), rtol=1e-4, atol=1e-5
        )
        assert (len(group.squares), len(group.stripes)) == (4, 2)


def test_named_groups_are_closed_and_empty_ones_are_left_out() -> None:
    label_N = np.array([0.0, 3.0, 3.5, 20.0, 35.0, 36.0])
    found = grouped(label_N, ((0, 3), (20, 35), (65, 100)), 25.0, 1.0)
    assert found.names == ("0-3", "20-35")
    assert found.group_N.tolist() == [0, 0, 2, 1, 1, 2]


def test_without_named_groups_they_are_bands() -> None:
    found = grouped(np.array([0.0, 24.0, 25.0, 99.0]), (), 25.0, 1.0)
    assert found.names == ("0-24", "25-49", "75-99")
    assert found.group_N.tolist() == [0, 0, 1, 2]
