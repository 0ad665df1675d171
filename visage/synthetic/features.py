"""A drawn face's features, each painted on the canvas: brows, eyes, nose, mouth; and where they
are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visage.synthetic.brush import SIDES, fourth, spot, stroke
from visage.synthetic.shape import Canvas, Grid, Window


def eye_centre(canvas: Canvas, side: float) -> tuple[float, float]:
    """Middle of the left (-1) or right (1) eye in the picture, as (u, v)."""
    head, person = canvas.shape, canvas.parameters.person
    return side * head.eye_u, head.eye_v + side * 0.026 * head.uneven * person.uneven_eyes


def mouth_line(canvas: Canvas, along: Grid) -> Grid:
    """The height v of the line between the lips, from the left corner (`along` -1) to the right one
    (1)."""
    photo, head, half = canvas.parameters, canvas.shape, canvas.shape.mouth_half_width
    tilt = 0.07 * half * head.uneven * photo.person.uneven_mouth * along
    lift = 0.09 * half * photo.smile * (1.0 - 2.2 * along * along)
    return head.mouth_v + lift + tilt - 0.008 * np.cos(along * 5.0)


def mouth_half_width(canvas: Canvas) -> float:
    """Half the distance between the corners, wider in a smile."""
    return canvas.shape.mouth_half_width * (1.0 + 0.14 * max(0.0, canvas.parameters.smile))


def five_points(canvas: Canvas) -> npt.NDArray[np.float64]:
    """Left eye, right eye, tip of the nose, both corners of the mouth: (5, 2) pixels x, y."""
    half = mouth_half_width(canvas)
    corners = mouth_line(canvas, np.array([[-1.0, 1.0]]))[0].tolist()
    points = [eye_centre(canvas, side) for side in SIDES]
    points += [(canvas.nose_u, canvas.shape.nose_v)]
    points += [(side * half, v) for side, v in zip(SIDES, corners, strict=True)]
    return np.array([canvas.project(u, v, canvas.skin_w(u, v)) for u, v in points])


def brows(canvas: Canvas, texture: Grid) -> None:
    """Two arched brows, thinning outwards, greying and thinning with age."""
    photo, head = canvas.parameters, canvas.shape
    hair = np.asarray(photo.person.hair_colour) * 0.8 + 0.1 * np.asarray(photo.person.skin_colour)
    grey = 0.8 * max(0.0, head.grey - 0.25)
    colour = hair * (1.0 - grey) + grey * 0.62
    dense = (0.30 + 0.5 * head.growth) * (1.0 - 0.25 * head.grey) + 0.12 * photo.make_up

    for side in SIDES:
        v = head.brow_v + side * 0.025 * head.uneven * photo.person.uneven_brows
        area = canvas.window(side * 0.43, v, 0.36, 0.2)

        out = (side * area.u - 0.42) / 0.28
        middle = v + 0.035 - head.brow_arch * (1.3 - (out - 0.25) ** 2 * 1.3)
        thick = head.brow_thickness * np.sqrt(np.maximum(0.0, 1.0 - out * out)) * (1.0 - 0.35 * out)

        hairs = np.clip(dense + 0.06 * texture[area.rows, area.columns], 0.0, 0.95)
        canvas.paint(
            canvas.soft(thick - np.abs(area.v - middle)) * hairs * (np.abs(out) < 1.0), colour, area
        )


@dataclass(frozen=True, kw_only=True)
class Eye:
    """One eye's own frame: `along` runs from the inner (-1) to the outer corner (1), `down` in head
    units; the lids are the curves `down == upper` and `down == lower`."""

    area: Window
    centre: tuple[float, float]
    along: Grid
    down: Grid
    upper: Grid
    lower: Grid
    # 1 between the corners, fading to 0 past them.
    ends: Grid

    @property
    def inside(self) -> Grid:
        """How far inside the lids, in head units."""
        return np.minimum(self.down - self.upper, self.lower - self.down)


def eyes(canvas: Canvas, lit: Grid) -> None:
    """Each eye's socket, ball and lids; `lit` is the light that has already fallen on the skin."""
    for side in SIDES:
        eye = _eye(canvas, side)
        _socket(canvas, eye)
        _eyeball(canvas, eye, lit)
        _lids(canvas, eye)


def _eye(canvas: Canvas, side: float) -> Eye:
    head, half = canvas.shape, canvas.shape.eye_half_width
    u, v = eye_centre(canvas, side)
    area = canvas.window(u, v, half * 1.5, half * 1.3)
    along = side * (area.u - u)
    down = area.v - v + head.eye_tilt * along
    along = along / half

    opening = head.eye_opening * (1.0 - 0.1 * canvas.parameters.smile)
    opening *= 1.0 + side * 0.09 * head.uneven * canvas.parameters.person.uneven_lids

    arch = 1.0 - along * along
    upper, lower = -opening * arch * (1.0 - 0.15 * along), 0.62 * opening * arch
    ends = np.exp(-0.5 * fourth(along * along))

    return Eye(
        area=area,
        centre=(u, v - 0.15 * opening),
        along=along,
        down=down,
        upper=upper,
        lower=lower,
        ends=ends,
    )


def _socket(canvas: Canvas, eye: Eye) -> None:
    photo, head = canvas.parameters, canvas.shape

    # Never under three quarters of a pixel, so that a line stays a line in a small picture.
    width = max(0.022, 0.75 / canvas.unit_px)

    # The crease above the lid, then the lid's own shade.
    crease = (eye.down - eye.upper + 0.055 - 0.035 * head.sagging) / width
    canvas.darken(
        (0.22 + 0.14 * photo.make_up + 0.1 * head.bags) * np.exp(-crease * crease) * eye.ends,
        eye.area,
    )

    lid = (eye.down + 0.5 * head.eye_opening) / (1.6 * head.eye_opening + 0.05)
    canvas.darken(0.20 * np.exp(-lid * lid - 0.5 * eye.along * eye.along), eye.area)


def _eyeball(canvas: Canvas, eye: Eye, lit: Grid) -> None:
    photo, head, area = canvas.parameters, canvas.shape, eye.area
    seen = canvas.soft(eye.inside)

    # The white, in the shade of the upper lid.
    white = np.array([0.93, 0.92, 0.90]) - np.array([0.04, 0.07, 0.13]) * head.spots
    shade = (
        np.clip(0.35 + 0.62 * lit[area.rows, area.columns], 0.4, 1.02)
        - 0.18 * eye.along * eye.along
    )
    shade = shade - 0.3 * np.exp(-(((eye.down - eye.upper) / 0.05) ** 2))
    canvas.paint(seen, white[:, None, None] * shade, area)

    # The iris with its dark rim, and the pupil.
    radius = 0.44 * head.eye_half_width * (1.0 + 0.08 * (1.0 - head.growth))
    u, v = eye.centre[0] + 0.04 * photo.gaze, eye.centre[1]
    apart = np.hypot(area.u - u, area.v - v)
    ring = 1.2 - 0.75 * np.minimum(1.0, fourth(apart / radius))
    canvas.paint(
        seen * canvas.soft(radius - apart),
        np.asarray(photo.person.eye_colour)[:, None, None] * ring,
        area,
    )
    canvas.paint(seen * canvas.soft(0.45 * radius - apart), (0.03, 0.03, 0.03), area)

    # The lamp's reflection.
    towards_lamp = 0.3 * radius * (1.0 if photo.light[0] > 0.0 else -1.0)
    glint = spot(area, u + towards_lamp, v - 0.35 * radius, 0.026, 0.026)
    canvas.paint(0.85 * seen * glint, (1.0, 1.0, 1.0), area)


def _lids(canvas: Canvas, eye: Eye) -> None:
    photo, head = canvas.parameters, canvas.shape
    width = max(0.020 + 0.012 * photo.make_up, 0.8 / canvas.unit_px)

    # Lashes, darker with make-up.
    lashes = np.exp(-(((eye.down - eye.upper + 0.008) / width) ** 2)) * eye.ends
    canvas.paint(
        (0.62 + 0.25 * head.growth + 0.1 * photo.make_up) * lashes, (0.10, 0.07, 0.06), eye.area
    )

    # The edge of the lower lid.
    rim = (
        np.exp(-(((eye.down - eye.lower - 0.006) / max(0.018, 0.75 / canvas.unit_px)) ** 2))
        * eye.ends
    )
    canvas.darken((0.28 + 0.25 * photo.make_up) * rim, eye.area)


def nose(canvas: Canvas) -> None:
    """Nostrils, the wings' edges and the shade that the nose throws below itself and beside its
    bridge."""
    head, u, half = canvas.shape, canvas.nose_u, canvas.shape.nose_half_width
    base = head.nose_v + 0.075 + 0.03 * head.growth
    area = canvas.window(u, head.nose_v - 0.10, 0.32, 0.42)

    amount = 0.30 * spot(area, u, base + 0.06, half * 1.1, 0.055)
    for side in SIDES:
        start, end = (u + side * half * 1.02, base - 0.12), (u + side * half * 0.85, base + 0.01)
        amount += 0.30 * stroke(area, start, end, -side * 0.035, 0.024)
        amount += 0.10 * spot(area, side * 0.15, head.eye_v + 0.08, 0.06, 0.2)

        # The nostril.
        hole = ((area.u - u - side * half * 0.48) / (half * 0.30)) ** 2 + (
            (area.v - base) / 0.032
        ) ** 2
        amount += 0.62 * np.exp(-hole * hole)

    canvas.darken(np.clip(amount, 0.0, 0.85) * (0.6 + 0.4 * head.growth), area)


def mouth(canvas: Canvas) -> None:
    """Two lips around a dark line, its corners lifted by a smile; open, it shows teeth."""
    photo, head = canvas.parameters, canvas.shape
    half = mouth_half_width(canvas)
    area = canvas.window(0.0, head.mouth_v, half * 1.2, 0.3)
    along = area.u / half
    arch = np.maximum(0.0, 1.0 - along * along)

    line, gap = mouth_line(canvas, along), 0.25 * half * photo.mouth_open * arch
    above, below = line - 0.4 * gap, line + gap
    cupid = 1.0 - 0.28 * np.exp(-((along / 0.14) ** 2))
    top, bottom = above - 0.82 * head.lips * arch * cupid, below + head.lips * np.sqrt(arch)

    # Lips, the upper one darker.
    shade = np.where(area.v < line, 0.86, 1.05 - 0.9 * np.abs(area.v - (below + 0.5 * head.lips)))
    lips = canvas.soft(np.minimum(area.v - top, bottom - area.v)) * (np.abs(along) < 1.02)
    canvas.paint(0.9 * lips, _lip_colour(canvas)[:, None, None] * shade, area)

    # The dark inside of an open mouth, and teeth in it.
    if photo.mouth_open > 0.1:
        canvas.paint(
            canvas.soft(np.minimum(area.v - above, below - area.v)) * (arch > 0.02),
            (0.28, 0.09, 0.09),
            area,
        )
        teeth = canvas.soft(np.minimum(area.v - above, line + 0.55 * gap - area.v)) * (arch > 0.18)
        canvas.paint(
            0.95 * teeth,
            np.array([0.93, 0.91, 0.86]) - np.array([0.1, 0.13, 0.2]) * head.spots,
            area,
        )

    # The line between the lips, and the shade below the lower one.
    width = max(0.017, 0.9 / canvas.unit_px)
    dark = 0.62 * np.exp(-(((area.v - above) / width) ** 2) - fourth(along) * along * along)
    canvas.darken(
        dark + 0.20 * np.exp(-(((area.v - bottom - 0.03) / 0.035) ** 2)) * arch * (1.0 - dark), area
    )


def _lip_colour(canvas: Canvas) -> npt.NDArray[np.float64]:
    photo, head = canvas.parameters, canvas.shape
    bare = (
        np.asarray(photo.person.skin_colour)
        * np.array([0.90, 0.66, 0.66])
        * (1.0 - 0.06 * head.folds)
    )
    painted = 0.55 * photo.make_up * (head.growth > 0.9)
    colour: npt.NDArray[np.float64] = bare * (1.0 - painted) + painted * np.array(
        [0.66, 0.13, 0.19]
    )
    return colour
