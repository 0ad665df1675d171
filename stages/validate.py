"""manifest.parquet + skipped.csv -> quarantine.csv, a JSON report and Great Expectations' Data
Docs, for one role.

The stage is a gate: the report is written only if the data pass (an older one is removed first), so
that no later stage can run on data that failed. On failure, `<role>.failed.json` in the same folder
holds the same facts. The checks are in `stages/checks/`: measures of every photo, and rules that
bound them. Great Expectations gets the rules, judges the measures and writes the docs. The report
holds no time and no run's name: same manifest, same settings, same bytes.

Ten seconds of a core, most of them imports; fifteen for a million photos, forty and 3.3 GB for five
million.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from stages.checks.facts import facts, skipped_facts
from stages.checks.findings import CheckResult, Findings, inspect
from stages.checks.settings import ValidateSettings
from stages.settings import Report, print_report, stage_main
from visage.atomic import atomic_folder, atomic_write

SEVERITY = {"fail": "critical", "quarantine": "warning", "report": "info"}
# (check, measure) -> what Great Expectations says of it.
Verdicts = Mapping[tuple[str, str], Mapping[str, Any]]


def validate(
    settings: ValidateSettings,
    *,
    manifest: Path,
    skipped: Path,
    quarantine: Path,
    result: Path,
    docs: Path,
    report: Report = print_report,
) -> None:
    """Checks `manifest`; ValueError where a check fails whose policy is `fail`, or too much is
    quarantined."""
    # A gate must not stay open: what an earlier run wrote goes first.
    failed = result.with_suffix(".failed.json")
    for stale in (result, failed, quarantine):
        stale.unlink(missing_ok=True)

    summary = skipped_facts(skipped)
    findings = inspect(manifest, settings)
    with atomic_folder(docs) as part:
        verdicts = expect(findings, result.stem, part)
    document = _document(findings, verdicts, settings) | {"skipped": summary}

    failures = [each for each in findings.check_results if each.result == "failed"]
    if failures:
        _write_json(failed, document)
        raise ValueError(_complaint(failures, len(findings.check_results), manifest, failed))

    with atomic_write(quarantine) as part, part.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["photo_id", "check", "reason"])
        writer.writerows(findings.quarantine(settings))
    _write_json(result, document)
    found = {each.check: float(each.found) for each in findings.check_results if each.found}
    report(0, {"photos": len(findings.photos), "quarantined": findings.num_leaving} | found)


def expect(findings: Findings, name: str, docs: Path) -> Verdicts:
    """Gives Great Expectations every bound, lets it judge the measures, and writes its static site
    into `docs`."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"

    # Six seconds, so not where only the settings are wanted.
    import great_expectations as gx
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas(name)
    run = RunIdentifier(run_name=name)
    tables = {
        True: ("photos", findings.photos),
        False: ("set", pd.DataFrame([findings.set_measures])),
    }

    verdicts: dict[tuple[str, str], Mapping[str, Any]] = {}
    for is_about_photos, (table, measures) in tables.items():
        check_results = [
            each for each in findings.check_results if each.is_about_photos == is_about_photos
        ]
        if not check_results:
            continue

        expectations = _expectations(check_results)
        suite = context.suites.add(gx.ExpectationSuite(name=table, expectations=expectations))
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("all")
        definition = gx.ValidationDefinition(name=table, data=batch, suite=suite)

        columns: set[str] = set()
        for check_result in check_results:
            columns.update(bound.measure for bound in check_result.bounds)
        ran = context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": measures[sorted(columns)]},
            result_format="SUMMARY",
            run_id=run,
        )
        verdicts |= dict(map(_verdict, ran.results))

    _write_docs(context, docs)
    return verdicts


def _expectations(check_results: list[CheckResult]) -> list[Any]:
    """One expectation a bound. The measures of the set are a single row; there the expectation is
    about the maximum, whose value the docs show."""
    from great_expectations.expectations.core.expect_column_max_to_be_between import (
        ExpectColumnMaxToBeBetween,
    )
    from great_expectations.expectations.core.expect_column_values_to_be_between import (
        ExpectColumnValuesToBeBetween,
    )
    from great_expectations.expectations.metadata_types import FailureSeverity

    kinds: dict[bool, Any] = {
        True: ExpectColumnValuesToBeBetween,
        False: ExpectColumnMaxToBeBetween,
    }

    expectations = []
    for check_result in check_results:
        claim = f"{check_result.check} ({check_result.policy}): {check_result.claim}"
        examples = "; ".join(": ".join(example.values()) for example in check_result.examples)
        for bound in check_result.bounds:
            expectation = kinds[check_result.is_about_photos](
                column=bound.measure,
                min_value=bound.minimum,
                max_value=bound.maximum,
                severity=FailureSeverity(SEVERITY[check_result.policy]),
                description=f"{claim}; {bound}",
                notes=examples or None,
                meta={"check": check_result.check},
            )
            expectations.append(expectation)
    return expectations


def _verdict(one: Any) -> tuple[tuple[str, str], Mapping[str, Any]]:
    """One expectation's result -> (check, measure), whether it was met, and how many rows miss
    it."""
    if one.exception_info["raised_exception"]:
        raise RuntimeError(
            f"Great Expectations could not judge {one.expectation_config}: {one.exception_info}"
        )

    if "unexpected_count" in one.result:
        outside = int(one.result["unexpected_count"])
    else:
        outside = int(not one.success)

    config = one.expectation_config
    key = (config.meta["check"], config.kwargs["column"])
    return key, {"success": bool(one.success), "outside": outside}


def _write_docs(context: Any, docs: Path) -> None:
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    context.add_data_docs_site(
        "docs", {"class_name": "SiteBuilder", "site_index_builder": index, "store_backend": store}
    )
    context.build_data_docs(["docs"])


def _document(findings: Findings, verdicts: Verdicts, settings: ValidateSettings) -> dict[str, Any]:
    checks = [_check_document(each, findings, verdicts) for each in findings.check_results]
    checks += [
        {"check": name, "policy": settings.policy[name], "result": "not run"}
        for name in findings.not_run
    ]

    num_photos = len(findings.photos)
    results = {check["result"] for check in checks}
    return {
        "success": results <= {"passed", "quarantined", "reported"},
        "photos": num_photos,
        "quarantined": findings.num_leaving,
        "checks": checks,
        "facts": facts(findings.photos, findings.is_kept, settings) if num_photos else {},
    }


def _check_document(
    check_result: CheckResult, findings: Findings, verdicts: Verdicts
) -> dict[str, Any]:
    judged_bounds = [verdicts[check_result.check, bound.measure] for bound in check_result.bounds]
    assert any(not verdict["success"] for verdict in judged_bounds) == bool(check_result.found), (
        f"two counts differ: {check_result}"
    )

    bounds: list[dict[str, Any]] = []
    for bound, verdict in zip(check_result.bounds, judged_bounds, strict=True):
        described = {
            "measure": bound.measure,
            "minimum": bound.minimum,
            "maximum": bound.maximum,
            "outside": verdict["outside"],
        }
        if not check_result.is_about_photos:
            described["value"] = round(findings.set_measures[bound.measure], 6)
        bounds.append(described)
    groups = {} if check_result.num_groups is None else {"groups": check_result.num_groups}

    return {
        "check": check_result.check,
        "claim": check_result.claim,
        "policy": check_result.policy,
        "result": check_result.result,
        "found": check_result.found,
        **groups,
        "quarantined": check_result.num_leaving,
        "bounds": bounds,
        "examples": check_result.examples,
    }


def _complaint(failures: list[CheckResult], num_checks: int, manifest: Path, failed: Path) -> str:
    lines = [f"{manifest}: {len(failures)} of {num_checks} checks failed"]

    for check_result in failures:
        first = check_result.examples[0]
        place = first.get("photo_id", first.get("measure"))
        where = "" if place is None else f"{place}: "
        what = "photos" if check_result.is_about_photos else "faults"
        lines.append(
            f"  {check_result.check}: {check_result.found} {what} ({check_result.claim}); first: "
            f"{where}{first['reason']}"
        )

    remedy = (
        "correct the source, or change the bound or the policy (quarantine, report) in "
        "params.yaml, section validate"
    )
    return "\n".join([*lines, f"  {remedy}; all counts and examples: {failed}"])


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    stage_main(
        "validate",
        ValidateSettings,
        validate,
        paths=["manifest", "skipped", "quarantine", "result", "docs"],
        has_role=True,
    )
