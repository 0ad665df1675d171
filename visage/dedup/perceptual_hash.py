"""A picture -> its perceptual hash (pHash): the 64-bit number by which near duplicates are found.

The picture in grey at 32 x 32, its cosine transform, the 8 x 8 lowest frequencies: a bit says
whether one is above their median. Scaling, recompression and slight changes of colour flip few
bits. The bits are read in rows, the first one is the highest.
"""

from __future__ import annotations

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image


def perceptual_hash(photo_HWC: npt.NDArray[np.uint8]) -> int:
    """An upright RGB picture as its 64-bit hash."""
    bits_88 = imagehash.phash(Image.fromarray(photo_HWC), hash_size=8).hash
    return int.from_bytes(np.packbits(bits_88).tobytes(), "big")
