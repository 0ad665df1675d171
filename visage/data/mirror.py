"""Faces to their mirror images: crops and the landmarks in them.

Written once for numpy arrays (answers) and torch tensors (training, score maps). Legend: B batch, C
colour channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy.typing as npt

from visage.labels import Array, library_of

if TYPE_CHECKING:
    from torch import Tensor

# Of the library of the view, and of another number type
Points = TypeVar("Points", npt.NDArray[Any], "Tensor")

# Landmarks by number in the mirror image: left and right change places
MIRRORED = (1, 0, 2, 4, 3)


def mirrored(view_BCHW: Array, landmarks_B52: Points | None = None) -> tuple[Array, Points | None]:
    """Crops or views (B,C,H,W), and their landmarks (B,5,2) in pixels of the crop -> those of the
    mirror images. The left landmark is again the left one in the picture."""
    xp = library_of(view_BCHW)
    flipped_BCHW: Array = xp.flip(view_BCHW, (-1,))
    if landmarks_B52 is None:
        return flipped_BCHW, None

    turned_B52 = landmarks_B52[:, list(MIRRORED)]
    width_px = view_BCHW.shape[-1]
    moved_B52: Points = xp.stack([width_px - turned_B52[..., 0], turned_B52[..., 1]], axis=-1)
    return flipped_BCHW, moved_B52
