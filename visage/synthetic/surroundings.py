"""What surrounds a drawn face: background, shoulders, ears, hair, beard, glasses, hat, and the
camera's faults."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from visage.synthetic.brush import SIDES, fourth
from visage.synthetic.shape import Canvas, Grid, Window, bell

BACKGROUND_POINTS = 6
# A blur of a smaller radius is not seen.
SHARP_PX = 0.2


class HairStyle(NamedTuple):
    """Head units: how far hair stands off crown and sides, down to where it covers the sides (v),
    where it ends behind (v, 0: nowhere), how far it hangs into the forehead, how thick it is (1:
    no skin shines through), curls, and how much further one side reaches into the forehead."""

    top: float
    side: float
    sides_end: float
    back_end: float
    fringe: float
    cover: float
    curls: float
    parting: float


STYLES = {
    #           top, side, sides_end, back_end, fringe, cover, curls, parting
    "down": HairStyle(0.015, 0.0, -0.25, 0.0, 0.0, 0.45, 0.3, 0.0),
    "buzz": HairStyle(0.03, 0.01, 0.15, 0.0, 0.0, 0.88, 0.3, 0.0),
    "short": HairStyle(0.12, 0.04, 0.2, 0.0, 0.05, 1.0, 0.1, 0.0),
    "parted": HairStyle(0.15, 0.06, 0.2, 0.0, 0.04, 1.0, 0.0, 0.3),
    "curly": HairStyle(0.26, 0.24, 0.35, 0.6, 0.03, 1.0, 1.0, 0.0),
    "bob": HairStyle(0.14, 0.16, 1.05, 1.1, 0.03, 1.0, 0.1, 0.2),
    "fringe": HairStyle(0.14, 0.15, 1.1, 1.3, 0.30, 1.0, 0.0, 0.0),
    "long": HairStyle(0.13, 0.14, 1.5, 2.4, 0.0, 1.0, 0.2, -0.2),
    "tied": HairStyle(0.08, 0.03, 0.1, 0.0, 0.0, 1.0, 0.0, 0.0),
}


def texture(px: int, rows: int, columns: int, rng: np.random.Generator) -> Grid:
    """Smooth noise of about unit size, at most 3, with so many cells down and across."""
    cells = np.clip(128.0 + 42.0 * rng.standard_normal((rows, columns)), 0.0, 255.0).astype(
        np.uint8
    )
    smooth: Grid = (
        np.asarray(Image.fromarray(cells).resize((px, px), Image.Resampling.BICUBIC)) / 42.0
    )
    smooth -= 128.0 / 42.0
    return smooth


def background(canvas: Canvas, rng: np.random.Generator) -> None:
    """Two colours running into each other, with blotches far out of focus: a few points, then
    smooth between them."""
    first, second = (np.asarray(colour) for colour in canvas.parameters.background)
    points = np.ix_(*(np.linspace(0, canvas.px - 1, BACKGROUND_POINTS).astype(int),) * 2)
    blotches = rng.standard_normal((BACKGROUND_POINTS, BACKGROUND_POINTS))

    ramp = np.clip(
        0.5 + 0.25 * canvas.y[points] - 0.15 * canvas.x[points] + 0.25 * blotches, 0.0, 1.0
    )
    coarse = Image.fromarray(
        (255.0 * (first + ramp[..., None] * (second - first))).astype(np.uint8)
    )

    smooth = np.asarray(coarse.resize((canvas.px, canvas.px), Image.Resampling.BICUBIC))
    np.divide(smooth.transpose(2, 0, 1), 255.0, out=canvas.colour)


def shoulders(canvas: Canvas) -> None:
    """Neck in the chin's shadow, and clothes; the smaller the child, the less neck."""
    head, photo = canvas.shape, canvas.parameters
    male = head.growth if photo.person.sex == "male" else 0.0
    neck = head.half_width * (0.42 + 0.12 * head.growth + 0.07 * male)
    length, half = 0.10 + 0.32 * head.growth, 1.15 + 0.75 * head.growth + 0.15 * male

    area = canvas.region(-3.0, 0.4 * head.chin, 3.0, 3.5)
    aside = np.abs(area.x)
    below = area.y - head.chin

    # The neck.
    skin = np.asarray(photo.person.skin_colour)[:, None, None]
    shade = (
        0.80
        - 0.36 * np.exp(-np.maximum(0.0, area.rim - 1.0) * 5.0)
        - 0.15 * (area.x / neck) ** 2 * (aside < neck)
    )
    bare = neck + 0.3 * np.maximum(0.0, below - 0.6 * length) - aside
    canvas.paint(canvas.soft(bare), skin * shade, area)

    # The clothes: sloping shoulders and a collar.
    out = np.maximum(0.0, aside - neck)
    round_off = np.maximum(0.0, aside - half + 0.5)
    top = length + 0.30 * out + 1.6 * round_off * round_off * round_off
    collar = 0.24 * (1.0 - (area.x / neck) ** 2)

    cloth = canvas.soft((below - top - np.maximum(0.0, collar)) * 0.9)
    light = 0.92 - 0.22 * aside / half - 0.15 * np.exp(-np.maximum(0.0, below - top - 0.02) * 9.0)
    canvas.paint(cloth, np.asarray(photo.clothes)[:, None, None] * light, area)


def ears(canvas: Canvas) -> None:
    """Two ears, the one turned away hidden further behind the head; earrings below."""
    head, photo = canvas.shape, canvas.parameters
    skin = np.asarray(photo.person.skin_colour) * np.array([0.90, 0.80, 0.78])
    v = 0.5 * (head.eye_v + head.nose_v)

    for side in SIDES:
        hidden = max(0.0, side * canvas.yaw[1])
        u = side * (head.half_width + 0.03 - 0.6 * hidden)
        area = canvas.region(u - head.ear, v - head.ear, u + head.ear, v + head.ear + 0.15)

        right, down = area.x - u, area.y - v
        far = np.sqrt((right / (0.55 * head.ear)) ** 2 + (down / head.ear) ** 2)
        shade = 1.0 - 0.35 * np.exp(
            -((right / (0.25 * head.ear)) ** 2) - (down / (0.55 * head.ear)) ** 2
        )

        canvas.paint(canvas.soft((1.0 - far) * 0.7 * head.ear), skin[:, None, None] * shade, area)
        if photo.earrings:
            canvas.paint(
                canvas.soft(0.06 - np.hypot(right, down - head.ear - 0.05)),
                (0.90, 0.78, 0.42),
                area,
            )


def hair_style(canvas: Canvas) -> HairStyle:
    """Babies have down and small children short hair, whatever their later style."""
    age = canvas.parameters.age_years + 0.6 * canvas.parameters.person.clock_growth
    if age < 1.6:
        return STYLES["down"]
    return STYLES["short" if age < 4.0 else canvas.parameters.person.style]


def hair_colours(canvas: Canvas, strands: Grid, area: Window) -> npt.NDArray[np.float64]:
    """Strand by strand between the person's colour and grey (3, rows, columns)."""
    head, photo = canvas.shape, canvas.parameters
    # Fair hair darkens while children grow.
    child = 0.25 * (1.0 - head.growth) * (photo.person.tone < 4)
    colour = np.asarray(photo.person.hair_colour) * (1.0 + child) + 0.04 * child

    mixed = np.clip(head.grey + 0.55 * head.grey * (1.0 - head.grey) * strands, 0.0, 0.96)
    shine = bell(area.y, -0.95, 0.22) * (0.5 + 0.3 * area.x * np.sign(photo.light[0]))
    lit = 0.80 + 0.14 * strands + 0.30 * shine

    grey, shine = mixed * lit, 0.05 * shine
    silver = np.array([0.80, 0.79, 0.78]) - colour
    return np.stack(
        [own * lit + towards * grey + shine for own, towards in zip(colour, silver, strict=True)]
    )


def hair_behind(canvas: Canvas, strands: Grid) -> None:
    """Long hair that falls behind face and neck."""
    style, head = hair_style(canvas), canvas.shape
    if style.back_end == 0.0:
        return

    half = head.half_width + style.side
    area = canvas.region(-half - 0.3, -0.05, half + 0.3, style.back_end + 0.2)
    local = strands[area.rows, area.columns]

    wide = half + 0.06 * np.maximum(0.0, area.y) + 0.02 * local * style.curls
    inside = np.minimum(wide - np.abs(area.x), style.back_end + 0.06 * local - area.y)
    inside = np.minimum(inside, 6.0 * area.y)
    canvas.paint(canvas.soft(inside), hair_colours(canvas, local, area) * 0.72, area)


def hair(canvas: Canvas, strands: Grid) -> None:
    """Hair in front: inside its own outline around the skull, and outside the opening that the face
    looks out of."""
    style, head = hair_style(canvas), canvas.shape
    lost = head.bald
    half, top = (
        head.half_width + style.side * (1.0 - 0.6 * lost),
        head.crown + style.top * (1.0 - lost),
    )

    area = canvas.region(-half - 0.08, -top - 0.08, half + 0.08, style.sides_end + 0.2)
    local = strands[area.rows, area.columns]
    crimp = style.curls * 0.03 * local

    # The hair's outline around the skull.
    high = np.minimum(area.y, 0.0) / (top + crimp)
    high = high * high
    outside = np.sqrt((area.x / (half + crimp)) ** 2 + high * (0.72 + 0.28 * high))

    # The hairline, which recedes first at the temples.
    recede = 0.30 * lost * bell(np.abs(area.u), 0.42, 0.22) + 0.85 * max(0.0, lost - 0.42)
    line = head.hairline_v + style.fringe - recede + 0.02 * local
    if style.parting != 0.0:
        line += 0.25 * style.parting * np.clip(1.2 * area.u, -1.0, 1.0)
    deep = np.where(area.v < 0.15, (area.v - 0.15) / (line - 0.15), 0.0)
    opening = 0.91 - 0.06 * (style.sides_end > 0.5) + 0.04 * lost

    edge = np.sqrt(np.sqrt(fourth(area.u / opening) + fourth(deep))) - 1.0
    strength = np.clip(0.5 + edge * canvas.unit_px * 0.45, 0.0, 1.0)
    strength = np.maximum(
        strength, canvas.soft((area.rim - 1.0) * head.half_width) * (area.y < 0.3)
    )

    ends = np.clip(0.5 + (style.sides_end + 0.05 * local - area.y) * canvas.unit_px * 0.3, 0.0, 1.0)
    thin = np.clip(style.cover * (1.0 - 0.35 * lost * (0.5 - 0.5 * local)), 0.0, 1.0)

    # The shadow of the hair on the forehead.
    shadow = np.clip(1.0 - np.abs(edge) * 7.0, 0.0, 1.0) * (area.rim < 1.0) * (area.v < 0.4)
    canvas.darken(0.16 * shadow * style.cover, area)
    cover = canvas.soft((1.0 - outside) * half) * strength * ends * thin
    canvas.paint(cover, hair_colours(canvas, local, area), area)


def beard(canvas: Canvas, strands: Grid) -> None:
    """Stubble to full beard, greying before the hair does."""
    photo, head = canvas.parameters, canvas.shape
    if photo.beard == 0.0:
        return

    area = canvas.window(0.0, head.chin - 0.35, 1.0, 0.75)

    # Cheeks and jaw, moustache, chin.
    low = area.v - (head.mouth_v - 0.30 + 0.55 * np.exp(-((area.u / 0.45) ** 2)))
    lip = np.minimum(area.v - head.nose_v - 0.17, head.mouth_v - 0.06 - area.v)
    lip = np.minimum(lip, head.mouth_half_width + 0.06 - np.abs(area.u))
    chin = np.minimum(area.v - head.mouth_v - head.lips - 0.07, 0.30 - np.abs(area.u))
    cover = np.clip(
        0.5 + 7.0 * np.maximum(np.maximum(np.minimum(low, np.abs(area.u) - 0.3), lip), chin),
        0.0,
        1.0,
    )

    local = strands[area.rows, area.columns]
    inside = canvas.soft((1.0 - area.rim) * head.half_width)
    grey = np.clip(1.3 * head.grey + 0.15 * local * head.grey, 0.0, 0.95)
    colour = np.asarray(photo.person.hair_colour)[:, None, None]
    colour = (colour + grey * (np.array([0.76, 0.75, 0.74])[:, None, None] - colour)) * (
        0.9 + 0.1 * local
    )

    canvas.paint(
        cover * inside * np.clip(0.75 * photo.beard + 0.1 * local, 0.0, 0.92), colour, area
    )


def glasses(canvas: Canvas) -> None:
    """Frames with a faint reflection; dark ones hide the eyes."""
    photo, head = canvas.parameters, canvas.shape
    if photo.glasses == "none":
        return

    frame = {"thin": 0.022, "thick": 0.05, "dark": 0.035}[photo.glasses]
    area = canvas.window(0.0, head.eye_v + 0.03, 1.1, 0.45)

    ring = np.full_like(area.u, -1.0)
    for side in SIDES:
        wide, high = (area.u - side * head.eye_u) / 0.33, (area.v - head.eye_v - 0.04) / 0.24
        edge = (np.sqrt(np.sqrt(fourth(wide) + fourth(high))) - 1.0) * 0.27
        if photo.glasses == "dark":
            canvas.paint(0.88 * canvas.soft(-edge), (0.06, 0.06, 0.08), area)
        ring = np.maximum(ring, frame - np.abs(edge))

    # Bridge and arms.
    bridge = np.minimum(
        frame - np.abs(area.v - head.eye_v + 0.03), head.eye_u - 0.3 - np.abs(area.u)
    )
    arms = np.minimum(frame - np.abs(area.v - head.eye_v + 0.02), np.abs(area.u) - head.eye_u - 0.3)
    canvas.paint(
        0.92 * canvas.soft(np.maximum(ring, np.maximum(bridge, arms))), (0.10, 0.09, 0.10), area
    )


def hat(canvas: Canvas, strands: Grid) -> None:
    """A knitted cap down to the middle of the forehead."""
    photo, head = canvas.parameters, canvas.shape
    if not photo.hat:
        return
    high = np.minimum(canvas.y, 0.0) / (head.crown + 0.2)
    outside = np.sqrt((canvas.x / (head.half_width + 0.12)) ** 2 + high * high)
    brim = head.brow_v - 0.22 + 0.06 * canvas.u**2 - canvas.v
    colour = np.asarray(photo.clothes)[::-1, None, None] * (0.85 + 0.06 * strands)
    colour = colour * np.where(brim < 0.2, 0.8, 1.0)
    canvas.paint(canvas.soft((1.0 - outside) * 1.1) * canvas.soft(brim), colour)


def finish(canvas: Canvas, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The camera: colour of the light, blur, sensor noise -> bytes (px, px, 3)."""
    photo = canvas.parameters
    canvas.colour *= 255.0 * np.asarray(photo.light_colour)[:, None, None]
    canvas.colour += 0.5
    np.clip(canvas.colour, 0.0, 255.0, out=canvas.colour)

    picture = np.ascontiguousarray(canvas.colour.astype(np.uint8).transpose(1, 2, 0))
    if photo.blur * canvas.px > SHARP_PX:
        picture = np.asarray(
            Image.fromarray(picture).filter(ImageFilter.GaussianBlur(photo.blur * canvas.px))
        )

    grain = rng.standard_normal((canvas.px, canvas.px, 1), dtype=np.float32) * np.float32(
        photo.noise
    )
    grainy = picture + np.rint(grain).astype(np.int16)
    photographed: npt.NDArray[np.uint8] = np.clip(grainy, 0, 255, out=grainy).astype(np.uint8)
    return photographed
