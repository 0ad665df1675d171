"""Photos and the aligned crops that the network gets, as in the DLDL-v2 slides; drawn faces.

    python -m visage.evaluation.aligned_figure docs/pictures/aligned.png

The landmarks are those that were drawn, so that no detector stands between photo and crop.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from visage.atomic import atomic_write_bytes
from visage.detection.align import crop, similarity, template, transform
from visage.evaluation.plots import VERMILION, canvas, png
from visage.synthetic import draw_face, landmarks, sample_person, sample_photo

# As params.yaml aligns.
TEMPLATE = "whole_face"
FACE_SCALE = 1.0

SHOWN_AGES = (3.0, 16.0, 30.0, 52.0, 78.0)
PHOTO_PX = 240
CROP_PX = 160
SEED = 20


def aligned_figure(ages: tuple[float, ...], seed: int) -> Figure:
    """A column a face: the drawn photo with its five landmarks, and the crop that a similarity
    transform lays on the template, with the same points."""
    figure = canvas(
        "A similarity transform lays five landmarks on the template", 1.7 * len(ages), 3.9
    )
    points_52 = template(TEMPLATE, CROP_PX, FACE_SCALE)
    panels = figure.subplots(2, len(ages), squeeze=False)

    for column, age in enumerate(ages):
        rng = np.random.default_rng((seed, column))
        photo = sample_photo(sample_person(rng), rng, age)
        # Noise would make the PNG large.
        photo = dataclasses.replace(photo, noise=0.0)
        picture = draw_face(photo, PHOTO_PX)
        found_52 = landmarks(photo, PHOTO_PX)

        matrix_23 = similarity(found_52, points_52)
        moved_52 = transform(found_52, matrix_23)
        for axes, image, places_52 in (
            (panels[0, column], picture, found_52),
            (panels[1, column], crop(picture, matrix_23, CROP_PX), moved_52),
        ):
            axes.imshow(image)
            axes.plot(*(places_52 - 0.5).T, color=VERMILION, marker="+", linestyle="none")
            axes.set(xticks=[], yticks=[])

        panels[0, column].set_title(f"{age:g} years", fontsize=9)

    panels[0, 0].set_ylabel("photo")
    panels[1, 0].set_ylabel("aligned")
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m visage.evaluation.aligned_figure", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("out", type=Path, help="the PNG that is written")
    atomic_write_bytes(parser.parse_args().out, png(aligned_figure(SHOWN_AGES, SEED)))


if __name__ == "__main__":
    main()
