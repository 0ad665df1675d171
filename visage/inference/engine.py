"""What every engine takes and gives: crops and landmarks in, label distributions out, as numpy
arrays and the same numbers in a batch of any size.

`visage.inference.onnx_engine` runs a model's graph in ONNX Runtime, `visage.inference.torch_engine`
its network in torch, and `visage.inference.fusion` averages several engines. Legend: B crops, C
pooled features, H and W crop side in pixels, K labels of the grid.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Crops = npt.NDArray[np.uint8]
Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]


@runtime_checkable
class Engine(Protocol):
    """Whatever computes a model's label distributions.

    `needs_landmarks`: it takes no crop without its landmarks. `gives_features`: its faces can be
    observed for drift.
    """

    @property
    def needs_landmarks(self) -> bool: ...

    @property
    def gives_features(self) -> bool: ...

    def answer(
        self, crops_BCHW: Crops, landmarks_B52: Floats32 | None
    ) -> tuple[Floats64, Floats32 | None]:
        """uint8 crops (B,3,H,W), B >= 1, and their landmarks in pixels of the crop -> probabilities
        (B,K), float64, and pooled features (B,C), float32, or None.

        An engine that needs no landmarks ignores them.
        """
