"""Validation reports -> one Markdown table: a column a report, a row a check. The table of
docs/data-quality.md.

python -m stages.checks.page CORAL=reports/validation/target.json ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN = (
    "label_balance",
    "group_balance",
    "quarantined_fraction",
)  # checks whose values are worth a look when passed
GROUP_WORDS = dict.fromkeys(
    ("duplicates", "contradicting_labels", "duplicates_across_splits"), "pictures"
)
GROUP_WORDS |= dict.fromkeys(("people_across_splits", "images_per_person"), "people")


def page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Name -> report, as Markdown."""
    lines = ["| |" + "".join(f" {name} |" for name in reports), "|---|" + "---|" * len(reports)]
    rows = {
        "photos": [f"{report['photos']:,}" for report in reports.values()],
        "train / val / test": [_splits(report, "photos") for report in reports.values()],
        "left after quarantine": [_splits(report, "kept") for report in reports.values()],
        "lines of skipped.csv: repaired, skipped": [
            _skipped(report) for report in reports.values()
        ],
    }
    checks = dict.fromkeys(
        check["check"] for report in reports.values() for check in report["checks"]
    )
    rows |= {f"`{name}`": [_check(report, name) for report in reports.values()] for name in checks}
    lines += [
        f"| {name} |" + "".join(f" {cell} |" for cell in cells) for name, cells in rows.items()
    ]
    return "\n".join(lines)


def _splits(report: Mapping[str, Any], what: str) -> str:
    return " / ".join(f"{counts[what]:,}" for counts in report["facts"]["splits"].values())


def _skipped(report: Mapping[str, Any]) -> str:
    photos = report["skipped"]["photos"]
    return ", ".join(
        str(photos[action]) if action in photos else "0" for action in ("repaired", "skipped")
    )


def _check(report: Mapping[str, Any], name: str) -> str:
    found = [check for check in report["checks"] if check["check"] == name]
    if not found:
        return "does not apply"
    [check] = found
    if check["result"] == "not run" or not check["bounds"] or _is_unknown(report, name):
        return "not run" if check["result"] == "not run" else "nothing known"
    if check["result"] == "passed":
        values = [f"{bound['value']:.3f}" for bound in check["bounds"] if name in SHOWN]
        return " ".join(["passed", *([f"({', '.join(values)})"] if values else [])])
    groups = f" in {check['groups']} {GROUP_WORDS[name]}" if "groups" in check else ""
    left = (
        f", {check['quarantined']} quarantined"
        if check["result"] == "quarantined"
        else f", {check['result']}"
    )
    return f"{check['found']}{groups}{left}"


def _is_unknown(report: Mapping[str, Any], name: str) -> bool:
    """Whether a check passed only because the set says nothing of what it looks at."""
    if name in ("people_across_splits", "images_per_person"):
        return report["facts"]["people"]["photos_named"] == 0 and "labels" in report["facts"]
    return name == "sigma_range" and report["facts"]["sigmas"]["given"] == 0


def main(arguments: Sequence[str]) -> None:
    """Prints the table of `name=path` pairs."""
    pairs = [argument.split("=", 1) for argument in arguments]
    print(page({name: json.loads(Path(path).read_text(encoding="utf-8")) for name, path in pairs}))


if __name__ == "__main__":
    main(sys.argv[1:])
