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
    found: dict[str, Any] = {
        "splits": {
            split: {
                "photos": int((split_N == place).sum()),
                "kept": int((split_N[is_kept] == place).sum()),
            }
            for place, split in enumerate(SPLITS)
        },
        "identical_pictures": _identical(photos, settings),
        "people": _people(photos),
        "groups": {name: histogram(kept, name) for name in GROUPS if kept[name].notna().any()},
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
    copied = photos.loc[
        photos["picture"].duplicated(keep=False), ["picture", "splits_of_picture", "label_gap"]
    ]
    found = {"groups": int(copied["picture"].nunique()), "photos": len(copied)}
    found["groups_across_splits"] = int(
        copied["picture"][copied["splits_of_picture"] > 1].nunique()
    )
    if settings.labels is not None:
        found["groups_contradicting"] = int(
            copied["picture"][copied["label_gap"] > settings.labels.max_gap].nunique()
        )
    return found


def _people(photos: pd.DataFrame) -> dict[str, float]:
    named = photos.loc[photos["named"] == 1, ["person", "photos_of_person", "splits_of_person"]]
    people = named.drop_duplicates("person")
    found = {
        "photos_named": len(named),
        "people": len(people),
        "across_splits": int((people["splits_of_person"] > 1).sum()),
    }
    return found | {
        f"photos_of_a_person_{name}": value
        for name, value in _spread(people["photos_of_person"]).items()
    }


def _spread(values: pd.Series) -> dict[str, float]:
    known = values.dropna()
    if known.empty:
        return {}
    low, middle, high = (round(float(known.quantile(part)), 6) for part in (0.0, 0.5, 1.0))
    return {"minimum": low, "median": middle, "maximum": high}


def skipped_facts(skipped: Path) -> dict[str, Any]:
    """The download stage's list of photos skipped or repaired -> counts, reasons, the first ones."""
    if not skipped.is_file():
        raise ValueError(
            f"{skipped}: no such list; the download stage writes it beside the manifest, run that "
            f"first"
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
    common = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:NUM_COMMON_REASONS]
    told = [
        {"action": action, "reason": reason, "photos": count} for (action, reason), count in common
    ]
    return {"photos": dict(sorted(actions.items())), "reasons": told, "examples": examples}
