"""Figures of what a model looks at: what is drawn are the numbers given, and the curves of Fig. 2
are the labels'."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from visage.encodings import normal_cdf, ranking_encoding
from visage.evaluation.bootstrap import Estimate
from visage.evaluation.html import Picture, Words, page
from visage.evaluation.plots import VERMILION, png
from visage.evaluation.ranking_figure import main as ranking_main
from visage.evaluation.ranking_figure import ranking_figure
from visage.explain import plots
from visage.explain.page import (
    CLASS_MAPS,
    SLOPES,
    group_document,
    sections,
    square_table,
    stripe_table,
)
from visage.explain.plots import GroupView
from visage.labels import LabelGrid

PX, SIDE = 20, 3
NAN = float("nan")


def losses(values: np.ndarray) -> list[Estimate]:
    return [Estimate(value=value, low=value - 0.1, high=value + 0.1) for value in values.tolist()]


def view(name: str, seed: int) -> GroupView:
    rng = np.random.default_rng(seed)
    return GroupView(
        name=name,
        num_faces=1200,
        mae=4.25,
        face_HW3=rng.random((PX, PX, 3)),
        score_HW=rng.random((PX, PX)),
        squares=losses(rng.normal(0, 0.2, SIDE**2)),
        stripes=losses(rng.normal(0, 0.4, SIDE)),
    )


def words(figure: Figure) -> str:
    texts = [figure.get_suptitle(), *(t.get_text() for axes in figure.axes for t in axes.texts)]
    return " ".join([*texts, *(axes.get_title() for axes in figure.axes)])


def every_figure() -> dict[str, Figure]:
    rng, groups = np.random.default_rng(0), [view("all", 1), view("0-24", 2)]
    faces = rng.integers(0, 255, (3, PX, PX, 3)).astype(np.uint8)
    label, value, scores = (
        np.array([3.0, 50.0, 90.0]),
        np.array([4.0, 40.0, 80.0]),
        rng.random((3, PX, PX)),
    )
    p_FK = rng.dirichlet(np.ones(11), 3).astype(np.float32)
    return {
        "score_maps": plots.score_maps(groups, "years"),
        "occlusion": plots.occlusion(groups, "years"),
        "faces": plots.face_sheet(
            "t", faces, scores, np.arange(0, 101, 10.0), p_FK, label, value, "years"
        ),
        "group_faces": plots.group_rows(
            ["0-3", "65-100"],
            [faces, faces[:1]],
            [scores, scores[:1]],
            [value, value[:1]],
            "years",
        ),
        "tsne": plots.embedding(
            rng.normal(size=(9, 2)), np.arange(9.0), rng.random(9), "age", "years"
        ),
        **{
            f"{name}_faces": plots.contact_sheet(
                "t", list(faces), faces, scores, label, value, 5.0, "years"
            )
            for name in ("best", "worst", "highest", "lowest")
        },
    }


@pytest.mark.parametrize(
    "name", ["score_maps", "group_faces", "occlusion", "faces", "tsne", "best_faces"]
)
def test_figures_are_pictures_and_the_same_every_time(name: str) -> None:
    first, second = png(every_figure()[name]), png(every_figure()[name])
    assert first == second
    with Image.open(io.BytesIO(first)) as image:
        assert min(image.size) > 100


def test_heat_maps_hold_the_losses_as_they_lie_in_the_crop() -> None:
    group = view("all", 1)
    figure = plots.occlusion([group], "years")
    face, square, stripe = figure.axes[:3]
    np.testing.assert_array_equal(face.images[0].get_array(), group.face_HW3)
    value = np.array([loss.value for loss in group.squares])
    np.testing.assert_array_equal(square.images[0].get_array(), value.reshape(SIDE, SIDE))
    np.testing.assert_array_equal(
        stripe.images[0].get_array(), [[loss.value] for loss in group.stripes]
    )
    assert [text.get_text() for text in square.texts] == [f"{round(100 * loss)}" for loss in value]
    row, column = divmod(int(value.argmax()), SIDE)
    assert f"square in row {row + 1}, column {column + 1} ({value.max():+.0%} of the MAE)" in words(
        figure
    )


def test_score_maps_and_labels_stand_above_their_faces() -> None:
    figures = every_figure()
    assert "all\n1,200 faces, MAE 4.25" in words(figures["score_maps"])
    assert "label 90\npredicted 80" in words(figures["faces"])
    assert "40 (50)" in words(figures["best_faces"])
    group = view("all", 1)
    over = plots.score_maps([group], "years").axes[1].images[1]
    np.testing.assert_array_equal(over.get_array(), group.score_HW)


def test_sheets_show_the_photo_above_the_aligned_face_and_colour_poor_predictions() -> None:
    photo = np.full((30, 40, 3), 7, np.uint8)
    face_1HW3, score_1HW = np.full((1, PX, PX, 3), 9, np.uint8), np.ones((1, PX, PX))
    colours = {}
    for value in (34.9, 35.1):
        figure = plots.contact_sheet(
            "t", [photo], face_1HW3, score_1HW, np.array([30.0]), np.array([value]), 5.0, "years"
        )
        above, crop, score = figure.axes
        np.testing.assert_array_equal(above.images[0].get_array(), photo)
        np.testing.assert_array_equal(crop.images[0].get_array(), face_1HW3[0])
        np.testing.assert_array_equal(score.images[1].get_array(), score_1HW[0])
        colours[value] = above.title.get_color()
    assert colours == {34.9: "black", 35.1: VERMILION}


def test_rows_of_groups_hold_their_own_faces() -> None:
    figure = every_figure()["group_faces"]
    shown = [len(axes.images) for axes in figure.axes[:12]]
    assert shown == [1, 1, 1, 2, 2, 2, 1, 0, 0, 2, 0, 0]
    assert "0-3" in words(figure)
    assert "65-100" in words(figure)


def test_undefined_losses_are_left_blank() -> None:
    unknown = [Estimate(value=NAN, low=NAN, high=NAN)] * SIDE
    group = GroupView(
        name="one",
        num_faces=1,
        mae=0.0,
        face_HW3=np.zeros((PX, PX, 3)),
        score_HW=np.zeros((PX, PX)),
        squares=unknown * SIDE,
        stripes=unknown,
    )
    figure = plots.occlusion([group, view("all", 1)], "years")
    assert len(figure.axes[2].texts) == 0
    assert png(figure)
    assert group_document(group)["squares"][0] == {
        "row": 1,
        "column": 1,
        "value": None,
        "low": None,
        "high": None,
        "score": 0.0,
    }
    assert stripe_table([group]).rows[0] == ["stripe 1", "undefined"]


def test_documents_and_tables_tell_the_places() -> None:
    group = view("all", 1)
    square = group_document(group)["squares"][5]
    assert (square["row"], square["column"], square["value"]) == (2, 3, group.squares[5].value)
    assert square["score"] == pytest.approx(group.score_HW[7:13, 13:20].mean())
    worst = int(np.argmax([loss.value for loss in group.squares]))
    first = square_table([group, view("old", 2)]).rows[0]
    assert first[0] == f"row {worst // SIDE + 1}, column {worst % SIDE + 1}"
    assert first[1].startswith(f"{group.squares[worst].value:.0%} (")


def test_page_says_that_it_is_private_and_shows_every_picture() -> None:
    drawn = {
        name: Picture(caption=name, png=png(figure)) for name, figure in every_figure().items()
    }
    text = page("t", sections(True, [view("all", 1)], drawn, {"split": "test"}))
    assert "as private as they are" in text
    assert text.count("<img") == len(drawn) == 9


@pytest.mark.parametrize(("class_maps", "says"), [(True, CLASS_MAPS), (False, SLOPES)])
def test_page_says_what_bright_places_mean(class_maps: bool, says: str) -> None:
    drawn = {name: Picture(caption=name, png=b"") for name in every_figure()}
    text = " ".join(
        part.text
        for part in sections(class_maps, [view("all", 1)], drawn, {})[0].parts
        if type(part) is Words
    )
    assert says in text
    assert text.count("Score maps") == 1


def test_ranking_figure_without_a_name_says_how_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ranking_figure"])
    with pytest.raises(SystemExit) as ended:
        ranking_main()
    assert ended.value.code == 2
    assert "usage: python -m visage.evaluation.ranking_figure" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["ranking_figure", str(tmp_path / "r.png")])
    ranking_main()
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_ranking_figure_draws_the_labels_curves_and_their_limit() -> None:
    grid = LabelGrid(minimum=0, step=1, maximum=100)
    right = ranking_figure(50.0, (5.0, 0.01), grid, 12, "years").axes[2]
    wide, sharp, encoding = (np.asarray(line.get_ydata()) for line in right.lines)
    one = torch.full((1,), 50.0, dtype=torch.float64)
    np.testing.assert_allclose(wide, 1 - normal_cdf(one, 5 * torch.ones(1), grid)[0])
    np.testing.assert_array_equal(encoding, ranking_encoding(one, grid)[0])
    away = grid.labels()[:-1] != 50
    np.testing.assert_allclose(sharp[:-1][away], encoding[away], atol=1e-12)
    assert np.abs(wide[:-1] - encoding)[away].max() > 0.3
