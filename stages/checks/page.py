"""Validation reports -> one Markdown table: a column a report, a row a check. The table of
docs/data-quality.md.

python -m stages.checks.page CORAL=reports/validation/target.json ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Checks whose values are worth a look when passed
SHOWN = ("label_balance", "group_balance", "quarantined_fraction")
GROUP_WORDS = dict.fromkeys(
    ("duplicates", "contradicting_labels", "duplicates_across_splits"), "pictures"
)
GROUP_WORDS |= dict.fromkeys(("people_across_splits", "images_per_person"), "people")


def page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Name -> report, as Markdown."""
    shown = list(reports.values())
    rows = {
        "photos": [f"{report['photos']:,}" for report in shown],
        "train / val / test": [_splits(report, "photos") for report in shown],
        "left after quarantine": [_splits(report, "kept") for report in shown],
        "lines of skipped.csv: repaired, skipped": [_skipped(report) for report in shown],
    }
    checks: dict[str, None] = {}
    for report in shown:
        checks |= dict.fromkeys(check["check"] for check in report["checks"])
    for name in checks:
        rows[f"`{name}`"] = [_check(report, name) for report in shown]

    lines = [_line("", reports), "|---|" + "---|" * len(reports)]
    lines += [_line(name, cells) for name, cells in rows.items()]
    return "\n".join(lines)


def _line(name: str, cells: Iterable[str]) -> str:
    first = f"| {name} |" if name else "| |"
    return first + "".join(f" {cell} |" for cell in cells)


def _splits(report: Mapping[str, Any], what: str) -> str:
    return " / ".join(f"{counts[what]:,}" for counts in report["facts"]["splits"].values())


def _skipped(report: Mapping[str, Any]) -> str:
    photos = report["skipped"]["photos"]
    return ", ".join(str(photos.get(action, 0)) for action in ("repaired", "skipped"))


def _check(report: Mapping[str, Any], name: str) -> str:
    found = [check for check in report["checks"] if check["check"] == name]
    if not found:
        return "does not apply"
    [check] = found

    if check["result"] == "not run":
        return "not run"
    if not check["bounds"] or _is_unknown(report, name):
        return "nothing known"
    if check["result"] == "passed":
        if name not in SHOWN:
            return "passed"
        values = ", ".join(f"{bound['value']:.3f}" for bound in check["bounds"])
        return f"passed ({values})"

    groups = f" in {check['groups']} {GROUP_WORDS[name]}" if "groups" in check else ""
    left = check["result"]
    if left == "quarantined":
        left = f"{check['quarantined']} quarantined"
    return f"{check['found']}{groups}, {left}"


def _is_unknown(report: Mapping[str, Any], name: str) -> bool:
    """Whether a check passed only because the set says nothing of what it looks at."""
    if name in ("people_across_splits", "images_per_person"):
        return report["facts"]["people"]["photos_named"] == 0 and "labels" in report["facts"]
    return name == "sigma_range" and report["facts"]["sigmas"]["given"] == 0


def main(arguments: Sequence[str]) -> None:
    """Prints the table of `name=path` pairs."""
    reports = {}
    for argument in arguments:
        name, path = argument.split("=", 1)
        reports[name] = json.loads(Path(path).read_text(encoding="utf-8"))
    print(page(reports))


if __name__ == "__main__":
    main(sys.argv[1:])
