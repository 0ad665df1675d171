"""The contact sheet of drawn faces that the README shows: `python -m visage.synthetic.contact_sheet
docs/pictures/drawn.png`."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from visage.atomic import atomic_write_bytes
from visage.synthetic.face import draw_face
from visage.synthetic.people import SKIN_TONES, sample_person, sample_photo

SHEET_AGES = (0.5, 4.0, 10.0, 20.0, 35.0, 50.0, 66.0, 84.0)


def drawn_sheet(path: Path, num_people: int, px: int, seed: int) -> None:
    """Writes a picture with a row a person (skin tones from light to dark, women and men in turn)
    and a column an age.

    Two rows are clean, two have all that photos may have, and so on. Sensor noise is left out.
    """
    rows = []
    for index in range(num_people):
        rng = np.random.default_rng((seed, index))
        tone = round(index * (len(SKIN_TONES) - 1) / max(1, num_people - 1))
        sex = ("female", "male")[index % 2]
        person = sample_person(rng)
        while (person.tone, person.sex) != (tone, sex):
            person = sample_person(rng)

        photos = [sample_photo(person, rng, age, clean=index % 4 < 2) for age in SHEET_AGES]
        # Noise does not compress: without it the file stays small.
        faces = [draw_face(dataclasses.replace(photo, noise=0.0), px) for photo in photos]
        rows.append(np.hstack(faces))

    file = io.BytesIO()
    sheet = Image.fromarray(np.vstack(rows))
    sheet.save(file, format="PNG", optimize=True)
    atomic_write_bytes(path, file.getvalue())


if __name__ == "__main__":
    drawn_sheet(Path(sys.argv[1]), num_people=5, px=84, seed=4)
