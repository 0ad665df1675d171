"""Age and attractiveness from face photos, by learning label distributions.

    import visage

    model = visage.load()
    for face in model.predict("photo.jpg"):
        print(face)

The names below are imported when they are first used: `import visage` takes milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visage.detection.image_io import PhotoError
    from visage.inference.loading import align, load, models
    from visage.inference.photos import Model
    from visage.inference.results import FacePrediction, PhotoPrediction
    from visage.labels import LabelGrid
    from visage.methods import METHODS

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "FacePrediction",
    "LabelGrid",
    "Model",
    "PhotoError",
    "PhotoPrediction",
    "__version__",
    "align",
    "load",
    "models",
]

_ADDRESSES = {
    "METHODS": "visage.methods",
    "FacePrediction": "visage.inference.results",
    "LabelGrid": "visage.labels",
    "Model": "visage.inference.photos",
    "PhotoError": "visage.detection.image_io",
    "PhotoPrediction": "visage.inference.results",
    "align": "visage.inference.loading",
    "load": "visage.inference.loading",
    "models": "visage.inference.loading",
}


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use (PEP 562)."""
    if name not in _ADDRESSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_ADDRESSES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ADDRESSES})
