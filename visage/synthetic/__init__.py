"""Faces drawn in code: the embedded data set. Nothing here is, or comes from, a photograph of
anybody.

A `Person` is invented from random numbers (`sample_person`), a photo of it is `FaceParameters`
(`sample_photo`), and `draw_face` paints that photo: an ellipsoid head with a relief of nose,
sockets, cheeks and folds under one lamp. What a model can learn from it is known exactly: age,
attractiveness and how ambiguous both are, identity, pose, landmarks. Results on it say that a
pipeline or a method works, and nothing about real faces.
"""

from __future__ import annotations

from visage.synthetic.face import draw_face, encode_face, landmarks
from visage.synthetic.files import DrawnPhoto, DrawnSet, draw_set, read_labels
from visage.synthetic.people import FaceParameters, Person, sample_person, sample_photo

__all__ = [
    "DrawnPhoto",
    "DrawnSet",
    "FaceParameters",
    "Person",
    "draw_face",
    "draw_set",
    "encode_face",
    "landmarks",
    "read_labels",
    "sample_person",
    "sample_photo",
]
