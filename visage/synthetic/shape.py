"""Parameters of a drawn photo -> measures of the head, and the pixel grid seen from the head.

Lengths are head units: an adult's average head is two units wide. u runs to the picture's right, v
down, w towards the camera; the origin is the middle of an average adult's head, at the height of
the eyes. Growing up follows what craniofacial growth does to a face (Todd, Mark, Shaw and
Pittenger 1980, "The Perception of Human Growth"): the cranium hardly changes while everything below
the eyes is stretched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from visage.synthetic.people import FaceParameters, Person

# (rows, columns); float64 so that a rounding never shows as another byte.
Grid = npt.NDArray[np.float64]
# w of the face's foremost point.
HEAD_DEPTH = 0.95
# How far the tip of the nose stands out of that.
NOSE_TIP_W = 0.2


def bell(values: Grid, middle: float, width: float) -> Grid:
    """exp(-((values - middle) / width)^2), in one piece of memory: large pictures are slow to
    allocate."""
    z = values - middle
    z *= z
    z *= -1.0 / (width * width)
    return np.exp(z, out=z)


@dataclass(frozen=True, kw_only=True)
class Proportions:
    """Measures of one head at one age, in head units; signs of ageing from 0 (none) to about 1."""

    growth: float
    half_width: float
    crown: float
    chin: float
    taper: float
    jaw: float
    cheek: float
    hollow: float
    jowl: float
    eye_u: float
    eye_v: float
    eye_half_width: float
    eye_opening: float
    eye_tilt: float
    brow_v: float
    brow_thickness: float
    brow_arch: float
    nose_v: float
    nose_half_width: float
    nose_bridge: float
    mouth_v: float
    mouth_half_width: float
    lips: float
    hairline_v: float
    ear: float
    uneven: float
    wrinkles: float
    folds: float
    sagging: float
    bags: float
    grey: float
    spots: float
    bald: float


def smooth_step(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, a smooth climb between."""
    t = min(1.0, max(0.0, (value - low) / (high - low)))
    return t * t * (3.0 - 2.0 * t)


def proportions(parameters: FaceParameters) -> Proportions:
    """The measures of this person's head at this photo's age."""
    person, age = parameters.person, parameters.age_years
    # 0 (attractive) to 1: how large the departures from the average face are.
    plain = (5.0 - person.attractiveness) / 4.0
    spread = 0.4 + 0.9 * plain
    years = max(0.0, age * (1.0 + 0.1 * person.clock_growth))
    growth = min(1.0, (1.0 - math.exp(-years / 6.5)) / (1.0 - math.exp(-18.0 / 6.5)))
    adult = smooth_step(years, 11.0, 20.0) * (1.0 if person.sex == "male" else -1.0)

    wrinkles = smooth_step(age + 6.0 * person.clock_wrinkles, 24.0, 88.0)
    sagging = smooth_step(age + 6.0 * person.clock_sagging, 34.0, 90.0)
    lips_lost = smooth_step(age + 8.0 * person.clock_lips, 30.0, 95.0)

    def grown(child: float, grown_up: float, sex: float = 0.0, trait: float = 0.0) -> float:
        return child + (grown_up - child) * growth + sex * adult + trait * spread

    eye_v = grown(0.24, 0.0, 0.0, 0.012 * person.eye_height)
    return Proportions(
        growth=growth,
        half_width=grown(1.06, 0.99, 0.02, 0.035 * person.face_width),
        crown=grown(1.20, 1.32),
        chin=grown(1.04, 1.40, 0.04, 0.05 * person.face_length + 0.03 * person.chin_length),
        taper=grown(0.02, 0.13, -0.035, -0.03 * person.jaw_width),
        jaw=grown(0.0, 0.05, 0.035, 0.03 * person.jaw_width),
        cheek=max(0.0, grown(0.11, 0.01, -0.008, 0.02 * person.cheek)) * (1.0 - 0.4 * sagging),
        hollow=smooth_step(age + 8.0 * person.clock_sagging, 40.0, 95.0)
        * (0.6 - 0.2 * person.cheek),
        jowl=0.11 * sagging,
        eye_u=grown(0.425, 0.42, 0.0, 0.022 * person.eye_spacing),
        eye_v=eye_v,
        eye_half_width=grown(0.215, 0.195, -0.004, 0.012 * person.eye_size),
        eye_opening=grown(0.15, 0.105, -0.006, 0.010 * person.eye_opening) * (1.0 - 0.3 * sagging),
        eye_tilt=0.06 + 0.05 * person.eye_tilt * spread - 0.10 * sagging,
        brow_v=eye_v - grown(0.235, 0.265, -0.03, 0.02 * person.brow_height) + 0.03 * sagging,
        brow_thickness=max(0.018, grown(0.022, 0.05, 0.014, 0.010 * person.brow_thickness)),
        brow_arch=grown(0.03, 0.05, -0.02, 0.02 * person.brow_arch),
        nose_v=eye_v + grown(0.30, 0.50, 0.01, 0.025 * person.nose_length) + 0.03 * sagging,
        nose_half_width=grown(0.155, 0.18, 0.012, 0.018 * person.nose_width) + 0.015 * sagging,
        nose_bridge=max(0.1, grown(0.25, 0.8, 0.1, 0.15 * person.nose_bridge)),
        mouth_v=eye_v + grown(0.56, 0.91, 0.015, 0.025 * person.mouth_height) + 0.02 * sagging,
        mouth_half_width=grown(0.22, 0.335, 0.008, 0.025 * person.mouth_width),
        lips=max(
            0.03, grown(0.085, 0.105, -0.01, 0.014 * person.lip_fullness) * (1.0 - 0.55 * lips_lost)
        ),
        hairline_v=grown(-0.88, -0.80, 0.01, 0.04 * person.hairline),
        ear=grown(0.20, 0.235, 0.01, 0.02 * person.ear_size) + 0.03 * sagging,
        uneven=0.15 + 1.3 * plain,
        wrinkles=wrinkles,
        folds=smooth_step(age + 6.0 * person.clock_folds, 16.0, 85.0),
        sagging=sagging,
        bags=smooth_step(age + 8.0 * person.clock_eyes, 22.0, 85.0),
        grey=smooth_step(age + 12.0 * person.clock_grey, 28.0, 86.0)
        * (0.15 if person.dyes_hair else 1.0),
        spots=smooth_step(age + 7.0 * person.clock_spots, 38.0, 92.0),
        bald=_bald(person, age),
    )


def _bald(person: Person, age: float) -> float:
    """0 to 1: men with the trait lose hair from their twenties on, others hardly, everyone's line
    recedes a little."""
    speed = 0.45 + 0.55 * smooth_step(person.balding, -0.4, 0.9) if person.sex == "male" else 0.15
    return speed * smooth_step(age + 4.0 * person.balding, 20.0, 78.0)


class Window(NamedTuple):
    """A rectangle of the picture: (u, v) on the face, (x, y) on the head before its turn, and how
    far out."""

    rows: slice
    columns: slice
    u: Grid
    v: Grid
    x: Grid
    y: Grid
    rim: Grid


class Canvas:
    """The picture while it is painted: pixel grid in head coordinates, colour planes (3, rows,
    columns) in 0..1, and the heights of the skin (`relief`, head units), which the light shades."""

    def __init__(self, parameters: FaceParameters, px: int) -> None:
        self.px, self.parameters, self.shape = px, parameters, proportions(parameters)
        head = self.shape
        self.unit_px = parameters.face_height * px / (head.crown + head.chin)

        self.roll, self.yaw, self.pitch = (
            (math.cos(angle), math.sin(angle))
            for angle in np.radians((parameters.roll, parameters.yaw, parameters.pitch)).tolist()
        )
        self.middle_v = (head.chin - head.crown) / 2.0

        side = (np.arange(px) + 0.5) / self.unit_px
        right = (side - parameters.centre[0] * px / self.unit_px)[None, :]
        down = (side - parameters.centre[1] * px / self.unit_px)[:, None]
        cosine, sine = self.roll
        self.x = right * cosine + down * sine
        self.y = down * cosine - right * sine + self.middle_v

        self.width_here, self.rim = self.outline(self.x, self.y)
        self.w = 1.0 - self.rim * self.rim
        np.sqrt(np.maximum(self.w, 0.0, out=self.w), out=self.w)
        self.w *= HEAD_DEPTH

        self.u = self.x * self.yaw[0]
        self.u -= self.w * self.yaw[1]
        turned = self.x * self.yaw[1]
        turned += self.w * self.yaw[0]
        turned *= self.pitch[1]
        self.v = self.y * self.pitch[0]
        self.v -= turned

        nose_skew = 0.02 * head.uneven * parameters.person.uneven_nose
        # The tip stands out and so runs ahead of the turn.
        self.nose_u = nose_skew + NOSE_TIP_W * self.yaw[1] / self.yaw[0]

        self.relief = np.zeros((px, px))
        self.colour = np.empty((3, px, px))

    def outline(self, x: Grid, y: Grid) -> tuple[Grid, Grid]:
        """The head's half width at height y, and how far out a point is: 0 the middle, 1 the
        outline."""
        head, uneven = self.shape, 0.02 * self.shape.uneven * self.parameters.person.uneven_jaw

        t = np.maximum(y, 0.0)
        t /= head.chin
        jaw = bell(t, 0.77, 0.155)
        jaw *= np.where(x > 0.0, head.jaw + head.jowl + uneven, head.jaw + head.jowl - uneven)

        width = bell(t, 0.5, 0.25)
        width *= head.cheek - 0.05 * head.hollow
        width += jaw
        t *= t
        width += head.half_width - 1.2 * head.taper * head.half_width * t

        above = np.minimum(y, 0.0)
        above *= above
        above *= 0.72 / head.crown**2 + (0.28 / head.crown**4) * above

        rim = x / width
        rim *= rim
        rim += t
        rim += above
        return width, np.sqrt(rim, out=rim)

    def soft(self, inside: Grid) -> Grid:
        """Coverage of pixels from a signed distance in head units, positive inside."""
        cover = inside * self.unit_px
        cover += 0.5
        return np.clip(cover, 0.0, 1.0, out=cover)

    def skin_w(self, u: float, v: float) -> float:
        """How far towards the camera the skin is at a point of the face."""
        _, rim = self.outline(np.full((1, 1), u), np.full((1, 1), v))
        return HEAD_DEPTH * math.sqrt(max(0.0, 1.0 - float(rim[0, 0]) ** 2))

    def project(self, u: float, v: float, w: float) -> tuple[float, float]:
        """A point of the turned head to pixels (x, y) of the picture."""
        y = v * self.pitch[0] + w * self.pitch[1]
        turned = w * self.pitch[0] - v * self.pitch[1]
        x = u * self.yaw[0] + turned * self.yaw[1]
        return self._place(x, y)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        cosine, sine = self.roll
        centre_x, centre_y = self.parameters.centre
        y -= self.middle_v
        return (
            (x * cosine - y * sine) * self.unit_px + centre_x * self.px,
            (x * sine + y * cosine) * self.unit_px + centre_y * self.px,
        )

    def window(self, u: float, v: float, half_u: float, half_v: float) -> Window:
        """The pixels around a point of the face, with room for the head's turn."""
        rim = (u / self.shape.half_width) ** 2 + (
            v / (self.shape.chin if v > 0.0 else self.shape.crown)
        ) ** 2
        x, y = self.project(u, v, HEAD_DEPTH * math.sqrt(max(0.0, 1.0 - rim)))
        sine = abs(self.roll[1])
        reach_x, reach_y = half_u + sine * half_v, half_v + sine * half_u
        return self._cut(x, y, reach_x * self.unit_px, reach_y * self.unit_px)

    def region(self, left: float, top: float, right: float, bottom: float) -> Window:
        """The pixels around a rectangle of the upright head, which does not turn with the face."""
        x, y = self._place((left + right) / 2.0, (top + bottom) / 2.0)
        half_x, half_y, sine = (right - left) / 2.0, (bottom - top) / 2.0, abs(self.roll[1])
        return self._cut(
            x, y, (half_x + sine * half_y) * self.unit_px, (half_y + sine * half_x) * self.unit_px
        )

    def head_region(self) -> Window:
        """The pixels that the bare head covers, and a rim around it."""
        wide = self.shape.half_width + self.shape.cheek + self.shape.jowl + 0.08
        return self.region(-wide, -self.shape.crown - 0.05, wide, self.shape.chin + 0.05)

    def _cut(self, x: float, y: float, reach_x: float, reach_y: float) -> Window:
        rows = slice(max(0, int(y - reach_y - 2.0)), max(0, min(self.px, int(y + reach_y + 3.0))))
        columns = slice(
            max(0, int(x - reach_x - 2.0)), max(0, min(self.px, int(x + reach_x + 3.0)))
        )
        cut = (rows, columns)
        return Window(
            rows, columns, self.u[cut], self.v[cut], self.x[cut], self.y[cut], self.rim[cut]
        )

    def paint(self, alpha: Grid, colour: npt.ArrayLike, window: Window | None = None) -> None:
        """Lays a colour, or one for every pixel, over the picture or a window of it, as thick as
        `alpha`."""
        region = self.colour if window is None else self.colour[:, window.rows, window.columns]
        for plane, wet in zip(region, np.asarray(colour), strict=True):
            plane += alpha * (wet - plane)

    def darken(self, amount: Grid, window: Window | None = None) -> None:
        """Takes away this share of the light."""
        region = self.colour if window is None else self.colour[:, window.rows, window.columns]
        region *= 1.0 - amount

    def raise_skin(self, height: Grid, window: Window) -> None:
        """Adds to the relief, in head units."""
        self.relief[window.rows, window.columns] += height
