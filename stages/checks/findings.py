"""A manifest and the settings become one result per check: what was found, what leaves, and a few
examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stages.checks.measures import measure, schema_faults
from stages.checks.rules import ROW_RULES, SET_RULES, Bound
from stages.checks.settings import ValidateSettings

NUM_EXAMPLES = 5
RESULT_OF = {"fail": "failed", "quarantine": "quarantined", "report": "reported"}


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check. `found` counts photos outside a bound; for a check of the whole set,
    measures."""

    check: str
    policy: str
    claim: str
    bounds: list[Bound]
    is_about_photos: bool
    found: int
    examples: list[dict[str, str]]
    # Distinct pictures or people among the photos found
    num_groups: int | None = None
    # Rows that quarantine takes
    leaving: np.ndarray | None = None

    @property
    def result(self) -> str:
        return RESULT_OF[self.policy] if self.found else "passed"

    @property
    def num_leaving(self) -> int:
        return 0 if self.leaving is None else len(self.leaving)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """`photos`: the measures of N photos, empty where the schema failed; `is_kept`: bool (N,),
    false in quarantine."""

    photos: pd.DataFrame
    is_kept: np.ndarray
    set_measures: dict[str, float]
    check_results: list[CheckResult]
    not_run: list[str]

    @property
    def num_leaving(self) -> int:
        return int((~self.is_kept).sum())

    def quarantine(self, settings: ValidateSettings) -> Iterator[tuple[str, str, str]]:
        """(photo_id, check, reason) of every photo that leaves, by photo_id; a photo may have
        several reasons."""
        rows = []
        for check_result in self.check_results:
            check = check_result.check
            leaving = check_result.leaving
            if leaving is not None and len(leaving):
                photo_ids = self.photos["photo_id"].iloc[leaving]
                reasons = ROW_RULES[check].reasons(self.photos, leaving, settings)
                for photo_id, reason in zip(photo_ids, reasons, strict=True):
                    rows.append((photo_id, check, reason))
        yield from sorted(rows)


def inspect(manifest: Path, settings: ValidateSettings) -> Findings:
    """Runs every check that applies; where the schema is wrong, that one alone."""
    if not manifest.is_file():
        raise ValueError(f"{manifest}: no such manifest; run the download stage first")
    faults = schema_faults(manifest)
    schema = _schema_result(faults)
    set_measures = {"schema_faults": float(len(faults))}
    if faults:
        return Findings(
            photos=pd.DataFrame(),
            is_kept=np.ones(0, bool),
            set_measures=set_measures,
            check_results=[schema],
            not_run=[check for check in settings.checks() if check != "schema"],
        )

    photos = measure(manifest)
    row_checks = [check for check in settings.checks() if check in ROW_RULES]
    about_photos = [_row_result(check, photos, settings) for check in row_checks]
    is_kept = np.ones(len(photos), bool)
    for check_result in about_photos:
        if check_result.leaving is not None:
            is_kept[check_result.leaving] = False
    # After quarantine: the rules about the set are for the photos that stay
    about_set, measured = _set_results(photos, is_kept, settings)

    return Findings(
        photos=photos,
        is_kept=is_kept,
        set_measures=set_measures | measured,
        check_results=[schema, *about_photos, *about_set],
        not_run=[],
    )


def _schema_result(faults: list[str]) -> CheckResult:
    return CheckResult(
        check="schema",
        policy="fail",
        claim="the columns, types, nulls, splits and the order are a manifest's",
        bounds=[Bound(measure="schema_faults", maximum=0, reason="")],
        is_about_photos=False,
        found=len(faults),
        examples=[{"reason": fault} for fault in faults],
    )


def _row_result(check: str, photos: pd.DataFrame, settings: ValidateSettings) -> CheckResult:
    rule = ROW_RULES[check]
    policy = settings.policy[check]
    found_N = rule.found(photos, settings)
    rows = np.flatnonzero(found_N)

    shown_N = found_N if rule.leaves is None else found_N & rule.leaves(photos)
    first = np.flatnonzero(shown_N)[:NUM_EXAMPLES]
    photo_ids = photos["photo_id"].iloc[first]
    reasons = rule.reasons(photos, first, settings)
    examples = [
        {"photo_id": photo_id, "reason": reason}
        for photo_id, reason in zip(photo_ids, reasons, strict=True)
    ]

    num_groups = None
    if rule.group is not None:
        num_groups = int(photos[rule.group].iloc[rows].nunique())
    leaving = None
    if policy == "quarantine":
        leaving = np.flatnonzero(rule.leaving(photos, settings))
    return CheckResult(
        check=check,
        policy=policy,
        claim=rule.claim,
        bounds=rule.bounds(settings),
        is_about_photos=True,
        found=len(rows),
        examples=examples,
        num_groups=num_groups,
        leaving=leaving,
    )


def _set_results(
    photos: pd.DataFrame, is_kept: np.ndarray, settings: ValidateSettings
) -> tuple[list[CheckResult], dict[str, float]]:
    fraction = float((~is_kept).mean()) if len(is_kept) else 0.0
    most = Bound(
        measure="quarantined_fraction",
        maximum=settings.max_quarantined_fraction,
        reason="{value:.4f} of all photos in quarantine, above {maximum:g}",
    )
    few = _set_result(
        "quarantined_fraction", "fail", "few photos are quarantined", [(most, fraction)]
    )
    check_results = [few]
    measured = {most.measure: fraction}

    kept = photos[is_kept]
    for check in settings.checks():
        if check in SET_RULES:
            rule = SET_RULES[check]
            pairs = rule.measures(kept, settings)
            check_results.append(_set_result(check, settings.policy[check], rule.claim, pairs))
            measured |= {bound.measure: value for bound, value in pairs}
    return check_results, measured


def _set_result(
    check: str, policy: str, claim: str, pairs: list[tuple[Bound, float]]
) -> CheckResult:
    outside = [(bound, value) for bound, value in pairs if bound.outside(np.array([value]))[0]]
    examples = [
        {"measure": bound.measure, "reason": bound.reason_for(value)} for bound, value in outside
    ]
    return CheckResult(
        check=check,
        policy=policy,
        claim=claim,
        bounds=[bound for bound, _ in pairs],
        is_about_photos=False,
        found=len(outside),
        examples=examples,
    )
