"""What a checked manifest holds, in numbers for a reader: splits, identical pictures, people,
labels, groups, sizes."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.checks.measures import GROUPS, SPLITS, histogram, label_edges
from stages.checks.settings import ValidateSettings

NUM_COMMON_REASONS = 20
NUM_EXAMPLES = 10


def facts(photos: pd.DataFrame, is_kept: np.ndarray, settings: ValidateSettings) -> dict[str, Any]:
    """Measures of N photos, and which stay -> counts; labels and groups are of the photos that
    stay."""
    split_N = photos["split"].to_numpy()
    kept = photos[is_kept]
    splits = {}
    for place, split in enumerate(SPLITS):
        splits[split] = {
            "photos": int((split_N == place).sum()),
            "kept": int((split_N[is_kept] == place).sum()),
        }
    known_groups = [name for name in GROUPS if kept[name].notna().any()]

    found: dict[str, Any] = {
        "splits": splits,
        "identical_pictures": _identical(photos, settings),
        "people": _people(photos),
        "groups": {name: histogram(kept, name) for name in known_groups},
        "shorter_px": _spread(photos["shorter_px"]),
        "longer_px": _spread(photos["longer_px"]),
    }
    if settings.labels is not None:
        edges = label_edges(settings.labels.minimum, settings.labels.maximum)
        found["labels"] = _spread(kept["label"]) | {"photos": histogram(kept, "label", edges)}
        found["sigmas"] = _spread(kept["sigma"]) | {"given": int(kept["sigma"].notna().sum())}
    return found


def _identical(photos: pd.DataFrame, settings: ValidateSettings) -> dict[str, int]:
    """Groups of byte-identical photos over the whole set, whatever their splits."""
    columns = ["picture", "splits_of_picture", "label_gap"]
    copied = photos.loc[photos["picture"].duplicated(keep=False), columns]
    across = copied["picture"][copied["splits_of_picture"] > 1]

    found = {
        "groups": int(copied["picture"].nunique()),
        "photos": len(copied),
        "groups_across_splits": int(across.nunique()),
    }
    if settings.labels is not None:
        contradicting = copied["picture"][copied["label_gap"] > settings.labels.max_gap]
        found["groups_contradicting"] = int(contradicting.nunique())
    return found


def _people(photos: pd.DataFrame) -> dict[str, float]:
    named = photos.loc[photos["named"] == 1, ["person", "photos_of_person", "splits_of_person"]]
    people = named.drop_duplicates("person")
    found: dict[str, float] = {
        "photos_named": len(named),
        "people": len(people),
        "across_splits": int((people["splits_of_person"] > 1).sum()),
    }
    for name, value in _spread(people["photos_of_person"]).items():
        found[f"photos_of_a_person_{name}"] = value
    return found


def _spread(values: pd.Series) -> dict[str, float]:
    known = values.dropna()
    if known.empty:
        return {}
    parts = {"minimum": 0.0, "median": 0.5, "maximum": 1.0}
    return {name: round(float(known.quantile(part)), 6) for name, part in parts.items()}


def skipped_facts(skipped: Path) -> dict[str, Any]:
    """The download stage's list of skipped or repaired photos -> counts, reasons, the first few."""
    if not skipped.is_file():
        raise ValueError(
            f"{skipped}: no such list; the download stage writes it beside the manifest, "
            "run that first"
        )

    actions: Counter[str] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    examples: list[dict[str, str]] = []
    with skipped.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if missing := {"photo_id", "reason", "action"} - set(reader.fieldnames or ()):
            raise ValueError(
                f"{skipped}: column {min(missing)!r} is missing; run the download stage again"
            )

        for row in reader:
            actions[row["action"]] += 1
            reasons[row["action"], row["reason"]] += 1
            if len(examples) < NUM_EXAMPLES:
                examples.append({name: row[name] for name in ("photo_id", "action", "reason")})

    # The most frequent first; equal counts in the order of their names
    by_count = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    common = [
        {"action": action, "reason": reason, "photos": count}
        for (action, reason), count in by_count[:NUM_COMMON_REASONS]
    ]
    return {
        "photos": dict(sorted(actions.items())),
        "reasons": common,
        "examples": examples,
    }
