"""How much a request may hold."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may hold: bytes as sent, pixels, photos and faces together, bytes and pixels
    of each."""

    max_request_bytes: int
    max_request_pixels: int
    max_photos: int
    max_photo_bytes: int
    max_photo_pixels: int

    def text(self) -> str:
        """The JSON that a package and the tag of its version hold."""
        return json.dumps(dataclasses.asdict(self))


# Of a model that brings none; those of params.yaml, section `package`
LIMITS = Limits(
    max_request_bytes=16_000_000,
    max_request_pixels=100_000_000,
    max_photos=32,
    max_photo_bytes=10_000_000,
    max_photo_pixels=25_000_000,
)
