"""A drawn head's skin: its colour, its heights, what years write into them, and the light that
falls on both.

Order matters: `skin` and `blemishes` lay colour, `relief` and `folds` raise heights, `light` shades
what they made.
"""

from __future__ import annotations

import math

import numpy as np

from visage.synthetic.brush import SIDES, fourth, spot, stroke
from visage.synthetic.shape import Canvas, Grid


def skin(canvas: Canvas, texture: Grid) -> None:
    """The head's own colour: blush where the blood is near, blotches in old and plain skin."""
    person, head = canvas.parameters.person, canvas.shape
    base = np.asarray(person.skin_colour)
    pale = 0.10 * smooth_age(canvas.parameters.age_years)
    colour = base * (1.0 - pale) + pale * base.mean() * np.array([1.06, 1.0, 0.9])

    uneven = (
        0.010 + 0.018 * head.uneven * (1.0 - 0.6 * canvas.parameters.make_up) + 0.03 * head.spots
    )
    whole = canvas.head_region()
    cover = canvas.soft((1.0 - whole.rim) * head.half_width)
    canvas.paint(
        cover, colour[:, None, None] * (1.0 + uneven * texture[whole.rows, whole.columns]), whole
    )

    # Blush on both cheeks and on the nose.
    cheeks = canvas.window(0.0, head.nose_v, head.half_width, 0.35)
    pairs = cheeks._replace(u=np.abs(cheeks.u))
    rosy = 0.9 - 0.5 * head.growth + 0.5 * canvas.parameters.make_up
    blush = rosy * spot(pairs, 0.58, head.nose_v + 0.02, 0.24, 0.2) + 0.4 * spot(
        cheeks, 0.0, head.nose_v, 0.15, 0.12
    )
    blush *= cheeks.rim < 1.0

    red = np.array([0.02, -0.05, -0.05]) * (0.4 + 0.6 * base[0])
    canvas.colour[:, cheeks.rows, cheeks.columns] += red[:, None, None] * blush


def smooth_age(age_years: float) -> float:
    """0 for the young to 1 at ninety: how much colour the skin has lost."""
    return min(1.0, max(0.0, (age_years - 30.0) / 60.0))


def blemishes(canvas: Canvas) -> None:
    """Moles for life, pimples in plain skin, age spots in old skin: always at the same places."""
    person, head = canvas.parameters.person, canvas.shape
    rng = np.random.default_rng((person.seed, 1))

    u, v = rng.uniform(-0.8, 0.8, 48), rng.uniform(-0.75, 1.15, 48)
    size, rank = rng.uniform(0.5, 1.0, 48), rng.uniform(size=48)

    covered = 1.0 - 0.5 * canvas.parameters.make_up
    pimples = rng.permutation(8)[
        : round(8 * max(0.0, head.uneven - 0.5) * covered * (1.3 - 0.5 * head.growth))
    ]
    spots = np.flatnonzero(rank[8:28] < 0.9 * head.spots) + 8
    moles = np.arange(46, 46 + int(rng.integers(3)))

    old, red = 0.32 * (0.5 + person.skin_colour[0]), 0.6
    kinds = [(pimples, 0.035, (0.0, 0.30, 0.26), red), (spots, 0.06, (0.24, 0.33, 0.40), old)]
    kinds += [(moles, 0.028, (0.6, 0.66, 0.66), 1.0)]

    for indices, radius, lost, strength in kinds:
        for index in indices:
            dot = canvas.window(u[index], v[index], 2.0 * radius, 2.0 * radius)
            amount = strength * spot(
                dot, u[index], v[index], radius * size[index], radius * size[index]
            )
            canvas.colour[:, dot.rows, dot.columns] *= (
                1.0 - amount * np.asarray(lost)[:, None, None]
            )


def relief(canvas: Canvas) -> None:
    """Heights of a smooth face: eye sockets, brow ridge, nose, cheeks, mouth, chin."""
    head = canvas.shape
    face = canvas.window(0.0, 0.45, 1.1, 1.15)
    # What both halves have is worked out once.
    pairs = face._replace(u=np.abs(face.u))

    height = -0.10 * spot(pairs, head.eye_u, head.eye_v - 0.02, 0.25, 0.17)
    height += 0.05 * spot(pairs, head.eye_u, head.eye_v, 0.17, 0.10)
    height += 0.07 * (1.0 + head.cheek * 4.0) * spot(pairs, 0.56, head.nose_v + 0.02, 0.28, 0.24)
    if head.hollow > 0.0:
        height -= 0.10 * head.hollow * spot(pairs, 0.62, head.mouth_v - 0.08, 0.17, 0.26)
    height += 0.05 * head.nose_bridge * spot(face, 0.0, head.brow_v + 0.03, 0.6, 0.12)
    height += 0.05 * spot(face, 0.0, head.mouth_v, 0.42, 0.20)
    canvas.raise_skin(height, face)

    chin = canvas.window(0.0, head.chin - 0.22, 0.48, 0.4)
    height = 0.06 * spot(chin, 0.0, head.chin - 0.22, 0.24, 0.14)
    height -= 0.025 * spot(chin, 0.0, head.mouth_v + 0.21, 0.2, 0.06)
    canvas.raise_skin(height, chin)

    _nose_relief(canvas)


def _nose_relief(canvas: Canvas) -> None:
    """A ridge that widens and rises from the bridge to the tip, and two wings."""
    head = canvas.shape
    area = canvas.window(canvas.nose_u, 0.5 * (head.eye_v + head.nose_v), 0.42, 0.65)

    along = np.clip((area.v - head.eye_v + 0.1) / (head.nose_v - head.eye_v + 0.1), 0.0, 1.0)
    across = (area.u - canvas.nose_u * along) / (0.085 + 0.05 * along)
    past = np.maximum(area.v - head.nose_v, 0.0) / 0.1
    before = np.maximum(head.eye_v - 0.1 - area.v, 0.0) / 0.12

    height = (0.05 * head.nose_bridge + 0.11 * along * along) * np.exp(
        -across * across - past * past - before * before
    )

    wings = area._replace(u=np.abs(area.u - canvas.nose_u))
    height += 0.07 * spot(wings, head.nose_half_width * 0.85, head.nose_v + 0.07, 0.075, 0.075)
    canvas.raise_skin(height, area)


def folds(canvas: Canvas) -> None:
    """What years write into the relief: forehead and frown lines, crow's feet, bags, folds at nose
    and mouth, jowls."""
    head = canvas.shape
    wobble = np.random.default_rng((canvas.parameters.person.seed, 2)).normal(0.0, 1.0, 8)

    if head.wrinkles > 0.0:
        _forehead(canvas, wobble)
    for side, mouth_wobble, eye_wobble in zip(
        SIDES, wobble[:2].tolist(), wobble[2:4].tolist(), strict=True
    ):
        _beside_mouth(canvas, side, mouth_wobble)
        _around_eye(canvas, side, eye_wobble)


def _beside_mouth(canvas: Canvas, side: float, wobble: float) -> None:
    head = canvas.shape
    depth = 0.25 * max(0.0, canvas.parameters.smile) * head.growth + head.folds

    # The fold from the wing of the nose to the corner of the mouth.
    nose, corner = side * (head.nose_half_width + 0.03), side * (head.mouth_half_width + 0.10)
    area = canvas.window((nose + corner) / 2.0, head.nose_v + 0.25, 0.30, 0.42)
    end = (corner + side * 0.02 * wobble, head.mouth_v - 0.02 + 0.12 * head.folds)
    fold = stroke(area, (nose, head.nose_v - 0.02), end, -side * 0.05, 0.030)
    canvas.raise_skin(-0.024 * depth * fold, area)
    canvas.darken(0.16 * depth * fold, area)

    if head.sagging == 0.0:
        return

    # The fold from the corner of the mouth downwards.
    area = canvas.window(corner, head.mouth_v + 0.22, 0.25, 0.35)
    start = (side * (head.mouth_half_width + 0.02), head.mouth_v + 0.03)
    fold = stroke(area, start, (corner, head.mouth_v + 0.36), -side * 0.03, 0.038)
    canvas.raise_skin(-0.022 * head.sagging * fold, area)
    canvas.darken(0.12 * head.sagging * fold, area)

    # The jowl.
    area = canvas.window(side * 0.55, head.chin * 0.8, 0.4, 0.3)
    canvas.raise_skin(
        0.09 * head.sagging * spot(area, side * 0.56, head.chin * 0.74, 0.2, 0.13), area
    )


def _forehead(canvas: Canvas, wobble: Grid) -> None:
    head = canvas.shape
    area = canvas.window(0.0, -0.55, 0.75, 0.35)
    spacing = 0.115 * (1.0 + 0.1 * wobble[4])
    phase = (
        area.v - head.brow_v + 0.03 * np.cos(area.u * 6.0) + 0.01 * wobble[5] * np.sin(area.u * 9.0)
    ) / spacing

    lines = fourth(np.maximum(0.0, np.cos(2.0 * math.pi * phase)))
    lines *= spot(area, 0.05 * wobble[6], head.brow_v - 0.29, 0.55, 0.22) ** 2 * (
        area.v < head.brow_v - 0.04
    )
    canvas.raise_skin(-0.012 * head.wrinkles * lines, area)
    canvas.darken(0.20 * head.wrinkles * lines, area)

    # Two frown lines between the brows.
    area = canvas.window(0.0, head.brow_v, 0.2, 0.2)
    for side in SIDES:
        frown = stroke(
            area, (side * 0.07, head.brow_v - 0.11), (side * 0.055, head.brow_v + 0.09), 0.0, 0.022
        )
        canvas.darken(0.22 * head.wrinkles * frown, area)


def _around_eye(canvas: Canvas, side: float, wobble: float) -> None:
    head, smile = canvas.shape, max(0.0, canvas.parameters.smile)
    outer = side * (head.eye_u + head.eye_half_width)

    # Crow's feet.
    area = canvas.window(outer + side * 0.12, head.eye_v, 0.2, 0.24)
    across, down = side * (area.u - outer) + 0.06, area.v - head.eye_v

    angle = np.arctan2(down, across)
    reach = np.exp(-(((np.hypot(across, down) - 0.17) / 0.075) ** 2)) * (np.abs(angle) < 0.95)
    rays = fourth(np.maximum(0.0, np.cos(angle * (8.5 + wobble)))) * reach
    feet = (head.wrinkles + 0.35 * smile * head.folds) * rays
    canvas.raise_skin(-0.008 * feet, area)
    canvas.darken(0.20 * feet, area)

    # The bag under the eye, and the groove that bounds it.
    under = head.eye_v + head.eye_opening + 0.10
    area = canvas.window(side * head.eye_u, under, 0.28, 0.2)
    inner, away = (
        (side * (head.eye_u - 0.17), under - 0.02),
        (side * (head.eye_u + 0.17), under - 0.03),
    )

    groove = stroke(area, inner, away, side * 0.075, 0.030)
    canvas.raise_skin(
        head.bags
        * (0.035 * spot(area, side * head.eye_u, under - 0.02, 0.16, 0.05) - 0.02 * groove),
        area,
    )
    canvas.darken((0.02 + 0.22 * head.bags) * groove, area)


def light(canvas: Canvas) -> Grid:
    """Light on head and relief (rows, columns of the head's region), about 1 where it falls
    straight; laid on the head.

    A lamp and the room's soft light: Lambert's law on the normals of the ellipsoid tilted by the
    relief's slope, and a faint sheen where skin mirrors the lamp.
    """
    photo, whole = canvas.parameters, canvas.head_region()
    cut = (whole.rows, whole.columns)
    height = canvas.relief[cut]

    # Slopes by central differences.
    slope_x, slope_y = np.zeros_like(height), np.zeros_like(height)
    slope_x[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * (0.58 * canvas.unit_px)
    slope_y[1:-1] = (height[2:] - height[:-2]) * (0.58 * canvas.unit_px)

    normal_x = 0.75 * whole.x / canvas.width_here[cut] - slope_x
    normal_y = 0.55 * (whole.y - 0.1) - slope_y
    normal_w = 0.55 + 0.47 * canvas.w[cut]

    # Lambert's law, and the sheen.
    lamp = np.array([photo.light[0], photo.light[1], 0.85])
    lamp /= np.linalg.norm(lamp)
    facing = normal_x * lamp[0] + normal_y * lamp[1] + normal_w * lamp[2]
    facing = np.maximum(
        0.0, facing / np.sqrt(normal_x * normal_x + normal_y * normal_y + normal_w * normal_w)
    )

    mirrored = fourth(facing) ** 2
    sheen = (0.03 + 0.30 * (1.0 - photo.person.skin_colour[1]) ** 2) * mirrored * fourth(facing)
    lit = 0.98 - photo.light_strength + photo.light_strength * 1.05 * facing + sheen
    canvas.colour[:, whole.rows, whole.columns] *= 1.0 + canvas.soft(
        (1.0 - whole.rim) * canvas.shape.half_width
    ) * (lit - 1.0)

    full = np.ones_like(canvas.relief)
    full[cut] = lit
    return full
