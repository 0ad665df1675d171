"""Served faces against training faces: have the photos that come in moved away from those that the
model was trained on?

A `Summary` holds no face, only how many there were, a histogram of their predicted values, and for
each pooled feature (what the model's head sees) its sum and sum of squares. `drift` compares two
summaries of one model by two numbers, both about 0 for faces of the same kind, however few:

- value_psi, the population stability index of predicted values, sum_b (q_b - p_b) ln(q_b / p_b)
  (Siddiqi 2006, Credit Risk Scorecards; the Jeffreys divergence of the histograms), over the bins
  that either uses, half a face added to each (added to bins that none uses, it would separate few
  faces from many). Two samples of M and N faces of one distribution over B bins have
  (B - 1) (1/M + 1/N) on average (Yurdakul and Naranjo 2020, Journal of Risk Model Validation
  14(4)); that is subtracted.
- feature_distance, the squared Frechet distance of Gaussians with diagonal covariances (Dowson and
  Landau 1982; Heusel et al. 2017 with full ones), sum_c (m_c - n_c)^2 + (s_c - t_c)^2, over the
  reference's variance sum_c s_c^2: the shift in units of how much faces differ anyway. What
  sampling adds to it on average (Chong and Forsyth 2020), for Gaussian features 3/2 sum_c s_c^2 / M
  + t_c^2 / N, is subtracted.

Either may come out a little below 0, the first more so where most bins hold no face or one. The
limits are in params.yaml, section `drift`. They were chosen by drawing samples (bench/drift.py,
figures in bench/README.md). Legend: N faces, C pooled features, B bins.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

# Comparing two documents needs no torch.
if TYPE_CHECKING:
    from visage.model_config import ModelConfig

Floats = npt.NDArray[np.float64]

# The summary of a model's training faces, in the folder of its config.
REFERENCE_FILE = "reference.json"
SUMMARY_FORMAT = 1

NUM_BINS = 20
# To each bin in use: Jeffreys' prior.
ADDED_FACES = 0.5


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over some faces: their number, predicted values by bin (B,) and in all, features (C,)
    and their squares."""

    num_faces: int
    value_sum: float
    histogram: Floats
    feature_sums: Floats
    feature_squares: Floats

    def __add__(self, other: Totals) -> Totals:
        return Totals(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def mean_C(self) -> Floats:
        return self.feature_sums / self.num_faces

    def variance_C(self) -> Floats:
        """Unbiased; of two faces or more."""
        squares_C = self.feature_squares - self.num_faces * self.mean_C() ** 2
        return np.maximum(squares_C, 0.0) / (self.num_faces - 1)


NO_FACES = Totals(
    num_faces=0,
    value_sum=0.0,
    histogram=np.zeros(NUM_BINS),
    feature_sums=np.zeros(0),
    feature_squares=np.zeros(0),
)


class Summary:
    """Running totals of one model's newest faces, in constant memory: about `window_faces` of them,
    in blocks of about `block_faces` of which the oldest goes when a new one begins. Several threads
    may add at once.

    `weights`: sha256 of the model's; `minimum`, `maximum`: the ends of its label grid.
    """

    def __init__(
        self, weights: str, minimum: float, maximum: float, *, window_faces: int, block_faces: int
    ) -> None:
        self.weights = weights
        self.minimum = minimum
        self.maximum = maximum
        self._block_faces = block_faces
        self._blocks: deque[Totals] = deque(maxlen=math.ceil(window_faces / block_faces))
        self._lock = threading.Lock()

    @classmethod
    def of(cls, config: ModelConfig, *, window_faces: int, block_faces: int) -> Summary:
        """An empty one for the faces that a config's model predicts."""
        return cls(
            config.weights.sha256,
            config.grid.minimum,
            config.grid.maximum,
            window_faces=window_faces,
            block_faces=block_faces,
        )

    def add(self, values_N: Floats, features_NC: npt.NDArray[np.float32]) -> None:
        """Counts N >= 1 faces' predicted values and pooled features: an `observe` of
        `visage.inference.faces.CropPredictor`."""
        edges = np.linspace(self.minimum, self.maximum, NUM_BINS + 1)
        inside_N = np.clip(values_N, self.minimum, self.maximum)
        count_B, _ = np.histogram(inside_N, edges)
        wide_NC = features_NC.astype(np.float64)
        new = Totals(
            num_faces=len(values_N),
            value_sum=float(values_N.sum()),
            histogram=count_B.astype(np.float64),
            feature_sums=wide_NC.sum(axis=0),
            feature_squares=(wide_NC**2).sum(axis=0),
        )

        with self._lock:
            if self._blocks and self._blocks[-1].num_faces < self._block_faces:
                self._blocks[-1] += new
            else:
                self._blocks.append(new)

    def clear(self) -> None:
        """Forgets all faces."""
        with self._lock:
            self._blocks.clear()

    def totals(self) -> Totals:
        """Over all faces that it keeps."""
        with self._lock:
            blocks = list(self._blocks)
        return sum(blocks[1:], blocks[0]) if blocks else NO_FACES

    def as_document(self) -> dict[str, Any]:
        """Plain JSON values that `from_document` reads."""
        totals = vars(self.totals())
        numbers = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in totals.items()
        }
        ends = {"minimum": self.minimum, "maximum": self.maximum}
        return {"format": SUMMARY_FORMAT, "weights": self.weights} | ends | numbers

    @classmethod
    def from_document(cls, document: Any, source: str) -> Summary:
        """The summary that `as_document` wrote; ValueError naming `source` for anything else."""
        try:
            if document["format"] != SUMMARY_FORMAT:
                raise ValueError(f"format {document['format']!r} is not {SUMMARY_FORMAT}")
            totals = _totals(document)
            size = max(1, totals.num_faces)
            minimum = float(document["minimum"])
            maximum = float(document["maximum"])
            weights = str(document["weights"])
            summary = cls(weights, minimum, maximum, window_faces=size, block_faces=size)
        except KeyError as error:
            raise ValueError(
                f"{source}: not a summary of faces: no {error}; write it again"
            ) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{source}: not a summary of faces: {error}; write it again"
            ) from error

        if totals.num_faces:
            summary._blocks.append(totals)
        return summary


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How many faces were served, the mean values predicted for them and for the reference's faces
    (label units), and how far values and features have moved (module docstring)."""

    num_faces: int
    value_mean: float
    reference_value_mean: float
    value_psi: float
    feature_distance: float


def drift(reference: Summary, served: Summary) -> Drift:
    """Compares two summaries of one model; ValueError for summaries of two models, or of too few
    faces to compare."""
    known = (reference.weights, reference.minimum, reference.maximum)
    if known != (served.weights, served.minimum, served.maximum):
        raise ValueError(
            f"faces of model {served.weights[:12]} are compared with the training faces of model "
            f"{known[0][:12]}: "
            "features of two models are not comparable; take both summaries from one"
        )

    old = reference.totals()
    new = served.totals()
    if min(old.num_faces, new.num_faces) < 2:
        raise ValueError(
            f"{new.num_faces} served and {old.num_faces} training faces: two of each are the least"
        )
    if old.variance_C().sum() == 0:
        raise ValueError(
            "the training faces all have the same features: this model sees no difference between "
            "two faces"
        )

    return Drift(
        num_faces=new.num_faces,
        value_mean=new.value_sum / new.num_faces,
        reference_value_mean=old.value_sum / old.num_faces,
        value_psi=population_stability_index(old.histogram, new.histogram),
        feature_distance=feature_distance(old, new),
    )


def population_stability_index(old_B: Floats, new_B: Floats) -> float:
    """Of two histograms of counts, less what sampling adds."""
    used_B = old_B + new_B > 0
    p_B = old_B[used_B] + ADDED_FACES
    q_B = new_B[used_B] + ADDED_FACES
    p_B = p_B / p_B.sum()
    q_B = q_B / q_B.sum()
    by_chance = (used_B.sum() - 1) * (1 / old_B.sum() + 1 / new_B.sum())
    return float(((q_B - p_B) * np.log(q_B / p_B)).sum() - by_chance)


def feature_distance(old: Totals, new: Totals) -> float:
    """Squared Frechet distance over the old faces' variance, less what sampling adds."""
    old_C = old.variance_C()
    new_C = new.variance_C()
    of_means = ((old.mean_C() - new.mean_C()) ** 2).sum()
    of_deviations = ((np.sqrt(old_C) - np.sqrt(new_C)) ** 2).sum()
    between = of_means + of_deviations
    by_chance = 1.5 * (old_C.sum() / old.num_faces + new_C.sum() / new.num_faces)
    return float((between - by_chance) / old_C.sum())


def _totals(document: dict[str, Any]) -> Totals:
    """A document's numbers; ValueError where they cannot be sums over the same faces."""
    names = ("value_sum", "histogram", "feature_sums", "feature_squares")
    numbers = {name: np.array(document[name], np.float64) for name in names}
    num_faces = int(document["num_faces"])
    value_sum, *lists = numbers.values()

    if value_sum.ndim or any(values.ndim != 1 for values in lists):
        raise ValueError("a list where a number should be, or the other way round")
    if not all(np.isfinite(values).all() for values in numbers.values()):
        raise ValueError("a number that is not finite")

    histogram_B, sums_C, squares_C = lists
    if len(histogram_B) != NUM_BINS or (histogram_B < 0).any() or histogram_B.sum() != num_faces:
        raise ValueError(f"its {NUM_BINS} bins do not hold its {num_faces} faces")
    if len(sums_C) != len(squares_C) or (len(sums_C) > 0) != (num_faces > 0):
        raise ValueError("its features do not fit together")

    return Totals(
        num_faces=num_faces,
        value_sum=float(value_sum),
        histogram=histogram_B,
        feature_sums=sums_C,
        feature_squares=squares_C,
    )
