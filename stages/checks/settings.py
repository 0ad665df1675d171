"""The settings of the validate stage, one per role: `validate.<role>` in params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stages.checks.measures import SPLITS

Policy = Literal["fail", "quarantine", "report"]
ANY: tuple[Policy, ...] = ("fail", "quarantine", "report")
# A whole set has no rows to quarantine
WHOLE: tuple[Policy, ...] = ("fail", "report")
POLICIES: dict[str, tuple[Policy, ...]] = {
    # Without its columns nothing else can be computed
    "schema": ("fail",),
    "unreadable": ANY,
    "tiny": ANY,
    "photo_size": ANY,
    "label_range": ANY,
    "sigma_range": ANY,
    "duplicates": ANY,
    "contradicting_labels": ANY,
    "duplicates_across_splits": ANY,
    "people_across_splits": ANY,
    "images_per_person": ANY,
    "photo_count": WHOLE,
    "label_balance": WHOLE,
    "group_balance": WHOLE,
}
ABOUT_LABELS = ("label_range", "sigma_range", "contradicting_labels", "label_balance")


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Bounds in label units (years, points)."""

    minimum: float
    maximum: float
    sigma_minimum: float
    sigma_maximum: float
    # Identical pictures whose labels are further apart than this contradict each other
    max_gap: float
    # KL(split || train) of the labels in ten bins, nats
    max_kl: float


@dataclass(frozen=True, kw_only=True)
class ValidateSettings:
    """`labels: null` where photos carry a person and no label: the checks about labels then do not
    apply."""

    labels: LabelSettings | None
    min_px: int  # shorter side
    max_px: int  # longer side
    max_aspect_ratio: float
    # A blank picture compresses to next to nothing
    min_bytes_per_px: float
    min_images_per_person: int
    # Split -> photos that must be left after quarantine
    min_photos: Mapping[str, int]
    # KL(split || train) of sex and of ethnicity, nats
    max_group_kl: float
    # Identical pictures leave train and val only, so that a published test list stays complete
    keep_test: bool
    max_quarantined_fraction: float
    # Every check that applies, each by name
    policy: Mapping[str, Policy]

    def __post_init__(self) -> None:
        self._check_policy()

        for split in self.min_photos:
            if split not in SPLITS:
                raise ValueError(f"min_photos: unknown split {split!r}; known: {', '.join(SPLITS)}")
        if not 0 <= self.max_quarantined_fraction <= 1:
            raise ValueError(
                f"max_quarantined_fraction: {self.max_quarantined_fraction} is not between 0 and 1"
            )

    def _check_policy(self) -> None:
        applying = self.checks()

        for name, policy in self.policy.items():
            if name not in applying:
                note = "" if self.labels else " (with `labels: null`)"
                raise ValueError(
                    f"policy: unknown check {name!r}; the checks are {', '.join(applying)}{note}"
                )
            if policy not in POLICIES[name]:
                raise ValueError(
                    f"policy.{name}: {policy!r} is not possible; say {' or '.join(POLICIES[name])}"
                )

        for name in applying:
            if name not in self.policy:
                raise ValueError(
                    f"policy: check {name!r} is missing; say {' or '.join(POLICIES[name])}"
                )

    def checks(self) -> list[str]:
        """The checks that apply, in the order of the report."""
        return [name for name in POLICIES if self.labels is not None or name not in ABOUT_LABELS]
