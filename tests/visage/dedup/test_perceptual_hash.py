"""The perceptual hash: a picture in another size or quality is near, another picture is far."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from visage.dedup.near_duplicates import MAX_DISTANCE
from visage.dedup.perceptual_hash import perceptual_hash
from visage.synthetic import DrawnSet, draw_set


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = tmp_path_factory.mktemp("drawn")
    drawn = DrawnSet(
        num_people=6,
        photos_per_person=1,
        px=160,
        seed=3,
        age_span_years=90.0,
        label_noise=0.0,
        dirt={},
    )
    draw_set(folder, drawn, num_workers=1)
    return [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.jpg"))]


def hash_of(image: Image.Image) -> int:
    return perceptual_hash(np.asarray(image))


def test_copies_are_near_and_others_are_far(pictures: list[Image.Image]) -> None:
    for picture in pictures:
        stream = io.BytesIO()
        picture.resize((97, 97)).save(stream, "JPEG", quality=60)
        assert (hash_of(picture) ^ hash_of(Image.open(stream))).bit_count() <= MAX_DISTANCE

    hashes = [hash_of(picture) for picture in pictures]
    others = [(one ^ other).bit_count() for i, one in enumerate(hashes) for other in hashes[:i]]
    assert min(others) > MAX_DISTANCE


def test_bits_are_read_in_rows(pictures: list[Image.Image]) -> None:
    """The first bit, the picture's mean, is above the median of what varies: it is the highest."""
    assert all(hash_of(picture) >> 63 == 1 for picture in pictures)
