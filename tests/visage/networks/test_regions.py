"""Aligned region pooling: the identity, what it undoes, its least squares, its gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from visage.detection.align import template
from visage.networks.regions import REGIONS, RegionPooling

CROP_PX = 96
MAP_SIDE = CROP_PX // 4


def pooling(kind: str = "aligned", **changes: object) -> RegionPooling:
    settings: dict[str, object] = {
        "template_name": "whole_face",
        "face_scale": 1.0,
        "global_zoom": 1.2,
        "local_zoom": 2.0,
        "side": None,
    }
    return RegionPooling(REGIONS, kind=kind, **(settings | changes))  # type: ignore[arg-type]


def template_landmarks(name: str = "whole_face", face_scale: float = 1.0) -> Tensor:
    """(1,5,2), pixels of the crop."""
    return torch.from_numpy(template(name, CROP_PX, face_scale)).float()[None]


def smooth_map(turn: Tensor | None = None, count: int = 3) -> Tensor:
    """A sum of waves over the map (1,count,h,w), of which cells see the place `turn` (2,3) times
    themselves."""
    steps = (torch.arange(MAP_SIDE) * 2 + 1) / MAP_SIDE - 1
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    # What the stem shows lies 1.5 px further right and down
    places = torch.stack([columns, rows], dim=-1) - 3 / CROP_PX
    if turn is not None:
        places = places @ turn[:, :2].T + turn[:, 2]
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(count, 6, 2, generator=generator) * 2.5
    phases = torch.rand(count, 6, generator=generator) * 6
    angles = torch.einsum("hwd,cnd->cnhw", places, waves) + phases[:, :, None, None]
    return angles.sin().sum(1)[None]


def moved_landmarks(landmarks_152: Tensor, turn: Tensor) -> Tensor:
    """Where landmarks are in a map that `smooth_map(turn)` gives."""
    places_52 = landmarks_152[0] * (2 / CROP_PX) - 1
    back_52 = torch.linalg.solve(turn[:, :2], (places_52 - turn[:, 2]).T).T
    return (back_52[None] + 1) * (CROP_PX / 2)


@pytest.mark.parametrize(
    ("name", "face_scale"), [("whole_face", 1.0), ("five_point_112", 1.0), ("whole_face", 0.7)]
)
def test_the_template_s_own_landmarks_give_the_map_back(name: str, face_scale: float) -> None:
    maps_BChw = smooth_map()
    pool = pooling(template_name=name, face_scale=face_scale)
    regions = pool(maps_BChw, template_landmarks(name, face_scale))
    torch.testing.assert_close(regions["g2"], maps_BChw, atol=1e-4, rtol=0)
    assert pool.shared(maps_BChw) is maps_BChw


COSINE, SINE = math.cos(math.radians(20)), math.sin(math.radians(20))
TURNS = {
    "turned": [[COSINE, -SINE, 0.0], [SINE, COSINE, 0.0]],
    "shifted": [[1.0, 0.0, 0.1], [0.0, 1.0, -0.15]],
    "turned, zoomed and shifted": [
        [0.9 * COSINE, -0.9 * SINE, 0.05],
        [0.9 * SINE, 0.9 * COSINE, 0.1],
    ],
    "sheared": [[1.0, 0.2, 0.0], [-0.1, 0.95, 0.05]],
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_a_moved_map_gives_nearly_the_same_regions(turn: list[list[float]]) -> None:
    """The middle of the regions: at the rim, a moved map shows what the other does not have."""
    matrix_23, landmarks_152 = torch.tensor(turn), template_landmarks()
    first_BChw, second_BChw = smooth_map(), smooth_map(matrix_23)
    assert (first_BChw - second_BChw).square().mean().sqrt() > 0.3 * first_BChw.std()
    first = pooling()(first_BChw, landmarks_152)
    second = pooling()(second_BChw, moved_landmarks(landmarks_152, matrix_23))
    for name in REGIONS:
        inner = slice(6, -6)
        difference = (first[name] - second[name])[:, :, inner, inner]
        assert difference.square().mean().sqrt() < 0.05 * first_BChw.std(), name


def test_theta_is_the_least_squares_fit_from_target_to_face() -> None:
    landmarks_B52 = template_landmarks() + torch.randn(3, 5, 2) * 4
    pool = pooling()
    points_B52 = 2 * landmarks_B52 / CROP_PX - 1
    t_52 = template("whole_face", 1, 1.0)
    centres = {
        "g2": np.array([0.5, 0.5]),
        "g3": np.array([0.5, 0.5]),
        "l1": t_52[0],
        "l2": t_52[2] / 2 + (t_52[0] + t_52[1]) / 4,
        "l3": (t_52[3] + t_52[4]) / 2,
    }
    zooms = {"g2": 1.0, "g3": 1.2, "l1": 2.0, "l2": 2.0, "l3": 2.0}
    for place, name in enumerate(REGIONS):
        target_52 = 2 * ((t_52 - centres[name]) * zooms[name] + 0.5) - 1
        design_53 = np.concatenate([target_52, np.ones((5, 1))], axis=1)
        for points_52, theta_32 in zip(points_B52, pool._theta(place, points_B52), strict=True):
            wanted_32, *_ = np.linalg.lstsq(design_53, points_52.double().numpy(), rcond=None)
            np.testing.assert_allclose(theta_32, wanted_32, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "left", "top", "side"),
    [
        ("g3", 0.083, 0.083, 0.833),
        ("l1", 0.054, 0.039, 0.5),
        ("l2", 0.25, 0.156, 0.5),
        ("l3", 0.25, 0.443, 0.5),
    ],
)
def test_regions_show_these_parts_of_the_crop(
    name: str, left: float, top: float, side: float
) -> None:
    """A map that holds its own coordinates, as shares of the crop."""
    steps = (torch.arange(MAP_SIDE) + 0.5) * 4 / CROP_PX - 1.5 / CROP_PX
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    region_2hw = pooling()(torch.stack([columns, rows])[None], template_landmarks())[name][0]
    cells = (torch.arange(MAP_SIDE) + 0.5) / MAP_SIDE - 1.5 / CROP_PX
    torch.testing.assert_close(region_2hw[0, 12], left + side * cells, atol=2e-3, rtol=0)
    torch.testing.assert_close(region_2hw[1, :, 12], top + side * cells, atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", ["aligned", "roi"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    maps_BChw = torch.randn(2, 2, 6, 6, generator=generator, dtype=torch.float64)
    bent_B52 = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    landmarks_B52 = (template_landmarks().double() / 4 + bent_B52).requires_grad_()
    pool = pooling(kind).double()

    def pooled(maps: Tensor, landmarks: Tensor) -> tuple[Tensor, ...]:
        return tuple(pool(maps, landmarks).values())

    assert torch.autograd.gradcheck(pooled, (maps_BChw.requires_grad_(), landmarks_B52), eps=1e-7)


def test_regions_of_interest_move_but_neither_turn_nor_shear() -> None:
    maps_BChw, landmarks_152 = smooth_map(), template_landmarks()
    pool = pooling("roi")
    shifted = torch.tensor([[1.0, 0.0, 0.125], [0.0, 1.0, -0.125]])
    first = pool(maps_BChw, landmarks_152)
    second = pool(smooth_map(shifted), moved_landmarks(landmarks_152, shifted))
    for name in ("l1", "l2", "l3"):
        torch.testing.assert_close(
            first[name][:, :, 6:-6, 6:-6], second[name][:, :, 6:-6, 6:-6], atol=0.15, rtol=0
        )

    turned = torch.tensor(TURNS["turned"])
    third = pool(smooth_map(turned), moved_landmarks(landmarks_152, turned))
    assert (first["l1"] - third["l1"]).abs().max() > 1
    eyes_alone = landmarks_152.clone()
    eyes_alone[:, 2] += 5
    moved = pool(maps_BChw, eyes_alone)
    assert torch.equal(moved["l1"], first["l1"])
    assert not torch.equal(moved["g2"], first["g2"]), "the nose is their centre"


def test_regions_may_have_a_side_of_their_own() -> None:
    maps_BChw = smooth_map()
    pool = pooling(side=16)
    regions = pool(maps_BChw, template_landmarks())
    assert {region.shape for region in regions.values()} == {(1, 3, 16, 16)}
    shared_BChw = pool.shared(maps_BChw)
    assert shared_BChw.shape == (1, 3, 16, 16)
    torch.testing.assert_close(shared_BChw, regions["g2"], atol=0.2, rtol=0)


def test_a_face_s_regions_do_not_depend_on_its_company() -> None:
    maps_BChw = smooth_map().expand(5, -1, -1, -1) + torch.randn(5, 1, 1, 1)
    landmarks_B52 = template_landmarks() + torch.randn(5, 5, 2) * 3
    together = pooling()(maps_BChw, landmarks_B52)
    alone = pooling()(maps_BChw[3:4], landmarks_B52[3:4])
    for name in REGIONS:
        assert torch.equal(together[name][3:4], alone[name])
