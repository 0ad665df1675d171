"""Random numbers -> invented people and the photos of them: everything that `draw_face` needs, as
plain numbers.

A `Person` holds what stays the same from photo to photo: traits in standard deviations from the
average face, colours, and how early each sign of ageing comes to this person. `FaceParameters` is
one photo of that person: age, pose, light, expression, accessories, picture quality. Attractiveness
is written into the face before it is drawn: the lower it is, the larger the departures from average
proportions (Langlois and Roggman 1990, "Attractive Faces Are Only Average"), from symmetry and from
even skin.

Each sign of ageing has a clock of its own (standard deviation 6 to 12 years), so no single sign
gives the age away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

RGB = tuple[float, float, float]

SKIN_TONES: tuple[RGB, ...] = (
    (0.96, 0.82, 0.74),
    (0.93, 0.75, 0.64),
    (0.87, 0.68, 0.54),
    (0.79, 0.58, 0.43),
    (0.67, 0.47, 0.34),
    (0.55, 0.37, 0.27),
    (0.44, 0.29, 0.21),
    (0.35, 0.225, 0.165),
)
HAIR_COLOURS: tuple[RGB, ...] = (
    (0.09, 0.075, 0.07),
    (0.17, 0.11, 0.08),
    (0.28, 0.18, 0.11),
    (0.40, 0.26, 0.15),
    (0.50, 0.25, 0.13),
    (0.60, 0.45, 0.27),
    (0.78, 0.64, 0.42),
)
EYE_COLOURS: tuple[RGB, ...] = (
    (0.20, 0.12, 0.07),
    (0.32, 0.19, 0.10),
    (0.42, 0.32, 0.16),
    (0.33, 0.42, 0.28),
    (0.30, 0.45, 0.60),
    (0.45, 0.50, 0.53),
)
STYLES = {
    "male": ("buzz", "short", "short", "parted", "parted", "curly", "long"),
    "female": ("bob", "bob", "long", "long", "tied", "fringe", "curly"),
}
# The oldest face drawn.
MAX_YEARS = 90.0
LABEL_YEARS = (0.0, 100.0)
SCORES = (1.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class Person:
    """What stays the same in every photo; from `face_width` on the fields are standard normal."""

    seed: int
    sex: str
    tone: int
    attractiveness: float
    style: str
    dyes_hair: bool
    hair_colour: RGB
    eye_colour: RGB
    skin_colour: RGB
    face_width: float
    face_length: float
    jaw_width: float
    chin_length: float
    cheek: float
    eye_spacing: float
    eye_size: float
    eye_opening: float
    eye_tilt: float
    eye_height: float
    brow_height: float
    brow_thickness: float
    brow_arch: float
    nose_length: float
    nose_width: float
    nose_bridge: float
    mouth_width: float
    mouth_height: float
    lip_fullness: float
    hairline: float
    ear_size: float
    uneven_eyes: float
    uneven_lids: float
    uneven_brows: float
    uneven_mouth: float
    uneven_nose: float
    uneven_jaw: float
    clock_growth: float
    clock_wrinkles: float
    clock_folds: float
    clock_sagging: float
    clock_eyes: float
    clock_lips: float
    clock_grey: float
    clock_spots: float
    balding: float


TRAITS = tuple(field.name for field in fields(Person)[9:])


@dataclass(frozen=True, kw_only=True)
class FaceParameters:
    """One photo: enough to draw it again, pixel for pixel, at any size.

    Angles in degrees (yaw: towards the picture's right, pitch: downwards, roll: clockwise);
    `face_height` is the bare head from crown to chin and `centre` the middle of it, in fractions of
    the picture's side; blur in fractions of the side; noise in grey levels; `sigma_years` and
    `sigma_attractiveness` say how far raters would disagree.
    """

    person: Person
    seed: int
    age_years: float
    yaw: float
    pitch: float
    roll: float
    centre: tuple[float, float]
    face_height: float
    smile: float
    mouth_open: float
    gaze: float
    light: tuple[float, float]
    light_strength: float
    light_colour: RGB
    background: tuple[RGB, RGB]
    clothes: RGB
    glasses: str
    hat: bool
    earrings: bool
    beard: float
    make_up: float
    blur: float
    noise: float
    jpeg_quality: int
    sigma_years: float
    sigma_attractiveness: float


def choose(rng: np.random.Generator, weights: np.ndarray) -> int:
    """An index drawn with these weights."""
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def sample_person(rng: np.random.Generator) -> Person:
    """A new invented person: traits independent, hair and eyes lighter only where the skin is
    light."""
    sex = ("male", "female")[int(rng.integers(2))]
    tone = int(rng.integers(len(SKIN_TONES)))
    lightness = 1.0 - tone / (len(SKIN_TONES) - 1)

    hair = choose(rng, np.exp(-np.arange(len(HAIR_COLOURS)) * (0.15 + 1.6 * (1.0 - lightness))))
    eyes = choose(rng, np.exp(-np.arange(len(EYE_COLOURS)) * (0.1 + 2.0 * (1.0 - lightness))))

    traits = dict(
        zip(TRAITS, rng.standard_normal(len(TRAITS)).clip(-2.2, 2.2).tolist(), strict=True)
    )

    # Faces differ in where they are uneven; how much they are is left to attractiveness.
    uneven = [name for name in TRAITS if name.startswith("uneven_")]
    size = math.sqrt(sum(traits[name] ** 2 for name in uneven) / len(uneven))
    traits |= {name: traits[name] / size for name in uneven}

    warmth = rng.normal(0.0, 0.012, 3)
    return Person(
        seed=int(rng.integers(2**31)),
        sex=sex,
        tone=tone,
        attractiveness=float(np.clip(rng.normal(3.0, 0.95), 1.0, 5.0)),
        style=STYLES[sex][int(rng.integers(len(STYLES[sex])))],
        dyes_hair=bool(rng.uniform() < (0.4 if sex == "female" else 0.1)),
        hair_colour=shifted(HAIR_COLOURS[hair], rng.normal(0.0, 0.015, 3)),
        eye_colour=shifted(EYE_COLOURS[eyes], rng.normal(0.0, 0.02, 3)),
        skin_colour=shifted(SKIN_TONES[tone], warmth),
        **traits,
    )


def shifted(colour: RGB, shift: np.ndarray) -> RGB:
    """A colour moved a little, kept inside the range of colours."""
    red, green, blue = np.clip(np.asarray(colour) + shift, 0.02, 0.98).tolist()
    return red, green, blue


def random_colour(rng: np.random.Generator, low: float, high: float, chroma: float) -> RGB:
    """A random colour; `chroma` 0 gives greys, 1 anything."""
    colour = rng.uniform(low, high, 3)
    return shifted((0.0, 0.0, 0.0), colour.mean() + chroma * (colour - colour.mean()))


def sample_photo(
    person: Person, rng: np.random.Generator, age_years: float | None = None, clean: bool = False
) -> FaceParameters:
    """A photo of `person` at `age_years` (else uniform in 0 to 90); `clean`: frontal, nothing over
    the face, sharp.

    Every random number is drawn whether it is used or not, so `clean` and `age_years` change only
    what they name.
    """
    uniform_age = rng.uniform(0.0, MAX_YEARS)
    age = float(uniform_age if age_years is None else age_years)

    yaw, pitch, roll = rng.normal(0.0, 1.0, 3).clip(-2.5, 2.5) * (
        (4.0, 2.5, 3.0) if clean else (8.0, 4.0, 6.0)
    )
    chances = rng.uniform(size=6)
    # 0 flawless, 1 poor.
    quality = float(rng.beta(1.2, 2.5)) * (0.15 if clean else 1.0)
    grown = age > 17.0

    light_x, light_y = rng.normal(0.0, 0.35), rng.normal(-0.35, 0.2)

    glasses = ("thin", "thick", "dark")[int(chances[1] * 3.0)]
    wears_glasses = not clean and chances[0] < 0.08 + 0.15 * min(1.0, age / 60.0)
    man, woman = person.sex == "male", person.sex == "female"

    return FaceParameters(
        person=person,
        seed=int(rng.integers(2**31)),
        age_years=age,
        yaw=float(yaw),
        pitch=float(pitch),
        roll=float(roll),
        centre=(float(rng.normal(0.5, 0.02)), float(rng.normal(0.50, 0.015))),
        face_height=float(rng.uniform(0.66, 0.76)),
        smile=float(rng.uniform(-0.2, 1.0)),
        mouth_open=float(max(0.0, rng.normal(-0.1, 0.5))),
        gaze=float(rng.normal(0.0, 0.3)),
        light=(float(np.clip(light_x, -0.8, 0.8)), float(np.clip(light_y, -0.8, 0.2))),
        light_strength=float(rng.uniform(0.45, 0.75)),
        light_colour=shifted((0.97, 0.97, 0.97), rng.normal(0.0, 0.03, 3)),
        background=(random_colour(rng, 0.1, 0.95, 0.4), random_colour(rng, 0.1, 0.95, 0.4)),
        clothes=random_colour(rng, 0.08, 0.9, 0.7),
        glasses=glasses if wears_glasses and age > 4.0 else "none",
        hat=bool(not clean and chances[2] < 0.07),
        earrings=bool(woman and age > 5.0 and chances[3] < 0.3),
        beard=float(rng.uniform(0.25, 1.0)) * (man and grown and chances[4] < 0.35),
        make_up=float(rng.uniform(0.2, 1.0)) * (woman and grown and chances[5] < 0.5),
        blur=0.006 * quality,
        noise=1.0 + 9.0 * quality,
        jpeg_quality=round(95 - 45 * quality),
        sigma_years=ambiguity_years(age, quality) * math.exp(0.2 * rng.standard_normal()),
        sigma_attractiveness=(0.3 + 0.4 * quality) * math.exp(0.15 * rng.standard_normal()),
    )


def ambiguity_years(age_years: float, quality: float) -> float:
    """How far raters disagree about an age: under a year for babies, about four at eighty, half as
    much again in poor pictures (`quality` 1)."""
    return (0.7 + 0.045 * age_years) * (1.0 + 0.5 * quality)


def apparent_label(
    true: float, spread: float, rng: np.random.Generator, scale: tuple[float, float]
) -> float:
    """The label that raters give: N(true, spread), reflected at the ends of the scale, rounded to
    a hundredth."""
    low, high = scale
    label = true + spread * float(rng.standard_normal())
    label = 2.0 * low - label if label < low else label
    label = 2.0 * high - label if label > high else label
    return round(min(high, max(low, label)), 2)


def ethnicity(person: Person) -> str:
    """The group's name in tables: the skin tone, from tone-1 (light) to tone-8 (dark)."""
    return f"tone-{person.tone + 1}"
