"""Parameters -> the picture of a face, its five landmarks, and the bytes of a JPEG file that says
it was drawn."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from visage.synthetic import features, skin, surroundings
from visage.synthetic.people import FaceParameters
from visage.synthetic.shape import Canvas

COMMENT = b"drawn by visage: nobody looks like this"
MIN_PX = 24


def draw_face(parameters: FaceParameters, px: int) -> npt.NDArray[np.uint8]:
    """The photo as (px, px, 3) bytes, from the background to the front; the same parameters give
    the same bytes."""
    if px < MIN_PX:
        raise ValueError(f"px {px}: a face needs at least {MIN_PX}")

    canvas, rng = Canvas(parameters, px), np.random.default_rng(parameters.seed)
    curls = surroundings.hair_style(canvas).curls
    strands = surroundings.texture(px, 6 + int(18 * curls), 64 - int(36 * curls), rng)

    surroundings.background(canvas, rng)
    surroundings.hair_behind(canvas, strands)
    surroundings.shoulders(canvas)
    surroundings.ears(canvas)

    skin.skin(canvas, surroundings.texture(px, 24, 24, rng))
    skin.blemishes(canvas)
    features.mouth(canvas)
    features.nose(canvas)
    skin.relief(canvas)
    skin.folds(canvas)

    surroundings.beard(canvas, strands)
    features.brows(canvas, strands)
    # After relief and folds, whose slopes it shades.
    lit = skin.light(canvas)
    features.eyes(canvas, lit)

    surroundings.hair(canvas, strands)
    surroundings.glasses(canvas)
    surroundings.hat(canvas, strands)
    return surroundings.finish(canvas, rng)


def landmarks(parameters: FaceParameters, px: int) -> npt.NDArray[np.float64]:
    """Where eyes, tip of the nose and corners of the mouth were drawn: (5, 2) pixels x, y, left
    before right."""
    return features.five_points(Canvas(parameters, px))


def encode_face(parameters: FaceParameters, px: int) -> bytes:
    """The photo as a JPEG file of the parameters' quality, with a comment that says where it comes
    from."""
    file = io.BytesIO()
    picture = Image.fromarray(draw_face(parameters, px))
    picture.save(file, format="JPEG", quality=parameters.jpeg_quality, comment=COMMENT)
    return file.getvalue()
