"""Aligned region pooling (DHAA section 3.2): one map of a face -> maps of its regions, each turned,
zoomed and shifted so that the region's landmarks lie where they always lie.

A region has five target points: the template's, moved and zoomed. The paper fits an affine
transform from the face's landmarks to them (its Eq. 1) and applies it. Sampling needs the way back,
which is fitted directly here: from target to face, in least squares. With Q the target points and a
column of ones (5,3) and P the face's landmarks (5,2), theta^T = pinv(Q) P. pinv(Q) is a constant of
the region, so there is no solver and no inverse in the graph, and theta is linear in the landmarks.

Coordinates of maps reach from -1 to 1 and are those of `grid_sample(align_corners=False)`. Legend:
B batch, C channels, h and w side of the shared map, s side of a region's map.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from visage.detection.align import Reals, template

# Pixels of the crop between the cells of the shared map: the stem's two strides
STEM_STRIDE = 4
# The stem's paddings put what is at pixel x of the crop at cell (x + 1.5) / 4 of the shared map
STEM_OFFSET_PX = 1.5

Kind = Literal["aligned", "roi"]
GLOBAL_REGIONS = ("g2", "g3")
LOCAL_REGIONS = ("l1", "l2", "l3")
REGIONS = (*GLOBAL_REGIONS, *LOCAL_REGIONS)


class RegionPooling(nn.Module):
    """Maps of the named regions from the shared map: `aligned`, or `roi` for the ablation, a square
    around the region's centre that neither turns nor shears.

    `template_name` and `face_scale` are those of `visage.detection.align.template`. `side`: cells
    of a region's map, None for as many as the shared map has.
    """

    fits_R35: Tensor
    centres_R5: Tensor

    def __init__(
        self,
        regions: tuple[str, ...],
        *,
        kind: Kind,
        template_name: str,
        face_scale: float,
        global_zoom: float,
        local_zoom: float,
        side: int | None,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.kind = kind
        self.side = side
        template_52 = template(template_name, 1, face_scale)
        self.zooms = {
            "g2": 1.0,
            "g3": global_zoom,
            **dict.fromkeys(LOCAL_REGIONS, local_zoom),
        }

        fits, centres = [], []
        for name in regions:
            centre_5 = _roi_centre(name) if kind == "roi" else _centre(name)
            target_52 = (template_52 - _point(centre_5, template_52)) * self.zooms[name] + 0.5
            in_map_53 = np.concatenate([2 * target_52 - 1, np.ones((5, 1))], axis=1)
            fits.append(np.linalg.pinv(in_map_53))
            centres.append(np.zeros(5) if centre_5 is None else centre_5)

        # Constants that the options give: no part of the state dict
        for name, values in (("fits_R35", fits), ("centres_R5", centres)):
            shape = (0, 3, 5) if name == "fits_R35" else (0, 5)
            constant = np.stack(values) if values else np.zeros(shape)
            tensor = torch.from_numpy(constant).float()
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, maps_BChw: Tensor, landmarks_B52: Tensor) -> dict[str, Tensor]:
        """The shared map and the landmarks in pixels of the crop -> (B,C,s,s) of each region.

        Places outside of the map are 0.
        """
        height, width = maps_BChw.shape[2:]
        sides_2 = landmarks_B52.new_tensor([width, height]) * STEM_STRIDE
        # The stem's offset is taken off target and source alike: the identity stays the identity
        offset_2 = 2 * STEM_OFFSET_PX / sides_2
        points_B52 = 2 * landmarks_B52 / sides_2 - 1
        rows = _cells(self.side or height, offset_2[1], points_B52)
        columns = _cells(self.side or width, offset_2[0], points_B52)

        found = {}
        for place, name in enumerate(self.regions):
            theta_B32 = self._theta(place, points_B52)[:, :, None, None]
            places_Bss2 = (
                columns[None, None, :, None] * theta_B32[:, 0]
                + rows[None, :, None, None] * theta_B32[:, 1]
                + theta_B32[:, 2]
                + offset_2
            )
            # bfloat16 has too few digits for places
            found[name] = nn.functional.grid_sample(
                maps_BChw.to(places_Bss2.dtype),
                places_Bss2,
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
        return found

    def shared(self, maps_BChw: Tensor) -> Tensor:
        """The shared map as the region g1: itself, resized where regions have a side of their
        own."""
        if self.side is None or maps_BChw.shape[2:] == (self.side, self.side):
            return maps_BChw
        size = (self.side, self.side)
        return nn.functional.interpolate(maps_BChw, size, mode="bilinear", align_corners=False)

    def _theta(self, place: int, points_B52: Tensor) -> Tensor:
        """Of one region, (B,3,2): rows for x, y and 1 of the region, columns for x and y of the
        map. Sums instead of a matrix product: the same numbers in a batch of any size."""
        if self.kind == "aligned":
            return (self.fits_R35[place][None, :, :, None] * points_B52[:, None]).sum(2)

        zoom = self.zooms[self.regions[place]]
        linear_22 = torch.eye(2, device=points_B52.device) / zoom
        centre_B2 = (self.centres_R5[place][None, :, None] * points_B52).sum(1)
        linear_B22 = linear_22.expand(points_B52.shape[0], 2, 2)
        return torch.cat([linear_B22, centre_B2[:, None]], dim=1)


def _cells(count: int, offset: Tensor, like: Tensor) -> Tensor:
    """The middles of `count` cells between -1 and 1, without the stem's offset."""
    steps = torch.arange(count, device=like.device, dtype=like.dtype)
    return (2 * steps + 1) / count - 1 - offset


def _centre(region: str) -> Reals | None:
    """Weights of the five landmarks that make a region's centre; None for the middle of the
    face's crop."""
    return {
        "g2": None,
        "g3": None,
        "l1": np.array([1.0, 0, 0, 0, 0]),
        # Half way from the tip to the eyes, as in the paper's ROI ablation
        "l2": np.array([0.25, 0.25, 0.5, 0, 0]),
        "l3": np.array([0, 0, 0, 0.5, 0.5]),
    }[region]


def _roi_centre(region: str) -> Reals | None:
    """The same for `roi`, where the larger regions lie around the tip of the nose."""
    nose = np.array([0, 0, 1.0, 0, 0])
    return nose if region in GLOBAL_REGIONS else _centre(region)


def _point(weights_5: Reals | None, template_52: Reals) -> Reals:
    return np.array([0.5, 0.5]) if weights_5 is None else weights_5 @ template_52
