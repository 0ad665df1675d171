"""The rules a manifest is held to, as frozen records in two dicts.

A rule about photos names measures and their bounds. What is outside is found; the policy decides
whether it fails the stage, is quarantined (left out from align on), or is only reported. A rule
about the whole set cannot be quarantined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.checks.measures import GROUPS, SPLITS, divergence, histogram, label_edges
from stages.checks.settings import LabelSettings, ValidateSettings

TEST = SPLITS.index("test")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """One measure and the range that it must be in, both ends included; NaN passes."""

    measure: str
    # Of a value outside; may name {value}, {minimum}, {maximum}, {other}
    reason: str
    minimum: float | None = None
    maximum: float | None = None

    def __str__(self) -> str:
        ends = []
        if self.minimum is not None:
            ends.append(f"at least {self.minimum:g}")
        if self.maximum is not None:
            ends.append(f"at most {self.maximum:g}")
        return f"{self.measure} {' and '.join(ends)}"

    def outside(self, values_N: np.ndarray) -> np.ndarray:
        found_N = np.zeros(len(values_N), bool)
        if self.minimum is not None:
            found_N |= values_N < self.minimum
        if self.maximum is not None:
            found_N |= values_N > self.maximum
        return found_N

    def reason_for(self, value: float, other: str = "") -> str:
        """The reason of one value outside."""
        return self.reason.format(
            value=value,
            other=other,
            minimum=self.minimum,
            maximum=self.maximum,
        )


@dataclass(frozen=True, kw_only=True)
class RowRule:
    """A rule about single photos: what is claimed of them, and the bounds that say so."""

    claim: str
    bounds: Callable[[ValidateSettings], list[Bound]]
    # Measure whose distinct values are the pictures or people of the photos found
    group: str | None = None
    # What a reason names, of some rows
    other: Callable[[pd.DataFrame, np.ndarray], Iterable[str]] | None = None
    # Which of those found are quarantined; None: all
    leaves: Callable[[pd.DataFrame], np.ndarray] | None = None
    # With `keep_test`, test photos stay
    can_spare_test: bool = False

    def found(self, photos: pd.DataFrame, settings: ValidateSettings) -> np.ndarray:
        """Photos outside any bound, bool (N,)."""
        outside = [
            bound.outside(photos[bound.measure].to_numpy()) for bound in self.bounds(settings)
        ]
        found_N: np.ndarray = np.logical_or.reduce(outside)
        return found_N

    def leaving(self, photos: pd.DataFrame, settings: ValidateSettings) -> np.ndarray:
        """Photos that quarantine takes, bool (N,): some of those found."""
        leaving_N = self.found(photos, settings)
        if self.leaves is not None:
            leaving_N &= self.leaves(photos)
        if self.can_spare_test and settings.keep_test:
            leaving_N &= photos["split"].to_numpy() != TEST
        return leaving_N

    def reasons(
        self, photos: pd.DataFrame, rows: np.ndarray, settings: ValidateSettings
    ) -> list[str]:
        """Why each of the photos `rows` was found: the first bound that it breaks."""
        reasons = [""] * len(rows)
        others = list(self.other(photos, rows)) if self.other else [""] * len(rows)
        # Backwards: the first bound that a photo breaks is written last
        for bound in reversed(self.bounds(settings)):
            values = photos[bound.measure].to_numpy()[rows]
            outside = bound.outside(values)
            for place in np.flatnonzero(outside):
                reasons[place] = bound.reason_for(values[place], others[place])
        return reasons


@dataclass(frozen=True, kw_only=True)
class SetRule:
    """A rule about the whole set, on measures computed from the photos that quarantine leaves."""

    claim: str
    measures: Callable[[pd.DataFrame, ValidateSettings], list[tuple[Bound, float]]]


def _labels(settings: ValidateSettings) -> LabelSettings:
    assert settings.labels is not None, "rules about labels do not apply without labels"
    return settings.labels


def _label_range(settings: ValidateSettings) -> list[Bound]:
    labels = _labels(settings)
    return [
        Bound(measure="has_label", minimum=1, reason="no label"),
        Bound(
            measure="label",
            minimum=labels.minimum,
            maximum=labels.maximum,
            reason="label {value:g} lies outside {minimum:g} to {maximum:g}",
        ),
    ]


def _sigma_range(settings: ValidateSettings) -> list[Bound]:
    labels = _labels(settings)
    return [
        Bound(
            measure="sigma",
            minimum=labels.sigma_minimum,
            maximum=labels.sigma_maximum,
            reason="sigma {value:g} lies outside {minimum:g} to {maximum:g}",
        )
    ]


def _contradicting(settings: ValidateSettings) -> list[Bound]:
    reason = "identical pictures have labels {value:g} apart"
    return [Bound(measure="label_gap", maximum=_labels(settings).max_gap, reason=reason)]


def _photo_size(settings: ValidateSettings) -> list[Bound]:
    return [
        Bound(
            measure="longer_px",
            maximum=settings.max_px,
            reason="longer side {value:.0f} px, above {maximum:g}",
        ),
        Bound(
            measure="aspect_ratio",
            maximum=settings.max_aspect_ratio,
            reason="sides 1 : {value:.1f}",
        ),
        Bound(
            measure="bytes_per_px",
            minimum=settings.min_bytes_per_px,
            reason="{value:.3g} bytes a pixel, under {minimum:g}: blank or a placeholder?",
        ),
    ]


def _images_per_person(settings: ValidateSettings) -> list[Bound]:
    fewest = Bound(
        measure="photos_of_person",
        minimum=settings.min_images_per_person,
        reason="person has {value:.0f} photos, under {minimum:g}",
    )
    if settings.labels is not None:
        return [fewest]
    return [Bound(measure="named", minimum=1, reason="no person"), fewest]


def _photo_count(kept: pd.DataFrame, settings: ValidateSettings) -> list[tuple[Bound, float]]:
    counts = np.bincount(kept["split"], minlength=len(SPLITS))
    reason = "{value:g} photos left, under {minimum:g}"

    pairs = []
    for split, fewest in sorted(settings.min_photos.items()):
        bound = Bound(measure=f"{split}_photos", minimum=fewest, reason=reason)
        pairs.append((bound, float(counts[SPLITS.index(split)])))
    return pairs


def _balance(
    name: str, counts: dict[str, dict[str, int]], maximum: float
) -> list[tuple[Bound, float]]:
    reason = "KL {value:.3f} nats from train, above {maximum:g}"

    pairs = []
    for split in SPLITS[1:]:
        kl = divergence(counts[split], counts["train"])
        if kl is not None:
            bound = Bound(measure=f"{split}_{name}_kl", maximum=maximum, reason=reason)
            pairs.append((bound, kl))
    return pairs


def _label_balance(kept: pd.DataFrame, settings: ValidateSettings) -> list[tuple[Bound, float]]:
    labels = _labels(settings)
    edges = label_edges(labels.minimum, labels.maximum)
    return _balance("label", histogram(kept, "label", edges), labels.max_kl)


def _group_balance(kept: pd.DataFrame, settings: ValidateSettings) -> list[tuple[Bound, float]]:
    pairs = []
    for name in GROUPS:
        pairs += _balance(name, histogram(kept, name), settings.max_group_kl)
    return pairs


def _photo_at(measure: str) -> Callable[[pd.DataFrame, np.ndarray], Iterable[str]]:
    """The photo_ids of the rows that a measure points at."""
    return lambda photos, rows: photos["photo_id"].iloc[photos[measure].iloc[rows]]


ROW_RULES: dict[str, RowRule] = {
    "unreadable": RowRule(
        claim="every photo can be decoded",
        bounds=lambda _: [Bound(measure="readable", minimum=1, reason="{other}")],
        other=lambda photos, rows: photos["unreadable"].iloc[rows],
    ),
    "tiny": RowRule(
        claim="no photo's shorter side is under min_px",
        bounds=lambda s: [
            Bound(
                measure="shorter_px",
                minimum=s.min_px,
                reason="shorter side {value:.0f} px, under {minimum:g}",
            )
        ],
    ),
    "photo_size": RowRule(
        claim="no photo is huge, a strip, or suspiciously few bytes", bounds=_photo_size
    ),
    "label_range": RowRule(claim="every photo has a label inside the range", bounds=_label_range),
    "sigma_range": RowRule(claim="every sigma given is inside the range", bounds=_sigma_range),
    "duplicates": RowRule(
        claim="no two photos of a split are byte-identical",
        bounds=lambda _: [
            Bound(measure="copies_in_split", maximum=1, reason="same bytes as {other}")
        ],
        group="picture",
        other=_photo_at("first_in_split"),
        leaves=lambda photos: photos["first_in_split"].to_numpy() != np.arange(len(photos)),
        can_spare_test=True,
    ),
    "contradicting_labels": RowRule(
        claim="identical pictures have the same label",
        bounds=_contradicting,
        group="picture",
        can_spare_test=True,
    ),
    "duplicates_across_splits": RowRule(
        claim="no picture is in two splits",
        bounds=lambda _: [
            Bound(
                measure="splits_of_picture",
                maximum=1,
                reason="same bytes as {other} of another split",
            )
        ],
        group="picture",
        other=_photo_at("firmest_copy"),
        leaves=lambda photos: photos["split"].to_numpy() != photos["firmest_split"].to_numpy(),
    ),
    "people_across_splits": RowRule(
        claim="no person is in two splits",
        bounds=lambda _: [
            Bound(measure="splits_of_person", maximum=1, reason="person is in {value} splits")
        ],
        group="person",
        leaves=lambda photos: (
            photos["split"].to_numpy() != photos["firmest_split_of_person"].to_numpy()
        ),
    ),
    "images_per_person": RowRule(
        claim="every person has enough photos",
        bounds=_images_per_person,
        group="person",
    ),
}
SET_RULES: dict[str, SetRule] = {
    "photo_count": SetRule(claim="enough photos are left in every split", measures=_photo_count),
    "label_balance": SetRule(claim="every split has the labels of train", measures=_label_balance),
    "group_balance": SetRule(
        claim="every split has the sexes and ethnicities of train", measures=_group_balance
    ),
}
