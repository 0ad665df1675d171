"""The scheduled job: new labelled data becomes a challenger, and the champion if it is no worse.

    python -m flows.retrain [--reason TEXT]   (or: make retrain; prefect.yaml runs it every night)

look (flows/intake/bring.py) -> reproduce and record (flows/reproduce.py) -> package -> compare ->
promote or refuse (model_registry/). Every step knows what is done already: a run that was killed
anywhere is finished by the next one, and with nothing new it ends in seconds. One process works in
a working copy at a time; a second one ends at once and says so. A champion is replaced only by a
version that `promote` in params.yaml lets pass, on the faces that are test for both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed

from flows.intake.bring import StillWritten, look
from flows.intake.storage import open_storage
from flows.intake.table import read_wanted
from flows.pipeline.artifacts import RecordedRun
from flows.pipeline.dvc_stages import declared, stale
from flows.pipeline.notify import notify
from flows.pipeline.stage_outputs import EXPORT, outputs_of
from flows.pipeline.stage_runner import StageFailed
from flows.pipeline.workspace import ROOT, Busy, only_one
from flows.reproduce import RETRY_PAUSES_S, reproduce_and_record
from model_registry.promote import decided, version_of
from model_registry.record import find, lock_digest
from stages.presets import read_params
from stages.settings import load_section

if TYPE_CHECKING:
    from model_registry.promotion_gate import Decision

INCOMING = "incoming"


@dataclass(frozen=True, kw_only=True)
class RetrainSettings:
    """`watch`: role -> folder or bucket (fsspec URL) with labels.csv and photos, null for a role
    without one. `experiment`: MLflow's. `notify`: name of a Prefect Webhook block that is told the
    outcome, null for nobody."""

    watch: Mapping[str, str | None]
    experiment: str
    notify: str | None


@flow(name="retrain")
def retrain(reason: str = "by hand", root: Path = ROOT) -> State[str]:
    """One night's work in the working copy; the state's message is the outcome. `reason`: why now,
    for the record."""
    settings = load_section(root / "params.yaml", "retrain", RetrainSettings)
    try:
        with only_one(root):
            outcome = _retrained(root, settings, reason)
    except Busy as busy:
        return Cancelled(message=str(busy))
    except Exception as error:
        notify(settings.notify, f"visage: retraining ({reason}) failed: {error}")
        raise
    create_markdown_artifact(
        key="retrain", markdown=outcome, description="What the last retraining came to"
    )
    return Completed(message=outcome, data=outcome)


def _retrained(root: Path, settings: RetrainSettings, reason: str) -> str:
    model: str = read_params(root / "params.yaml")["package"]["model"]
    for role, watch in settings.watch.items():
        if watch is not None:
            bring_in(root, role, watch)
    if settled := _settled(root, settings.experiment, model):
        return f"Nothing new: {settled}"
    _, run = reproduce_and_record(root, settings.experiment)
    version = packaged(root, run)
    outcome = _sentence(model, version, compared(root, model, version, run, reason))
    notify(settings.notify, f"visage: {outcome}")
    return outcome


def _settled(root: Path, experiment: str, model: str) -> str | None:
    """What was decided of the result that lies in the working copy; None where anything is left to
    do."""
    lock = root / "dvc.lock"
    if not lock.is_file() or stale(root):
        return None
    run_id = find(experiment, lock_digest(lock))
    version = run_id and version_of(model, run_id)
    decision = version and _has_our_limits(root, version) and decided(model, version)
    return f"version {version} of {model} was {decision[0]} ({decision[1]})" if decision else None


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether another look may help: a store that broke off, a table that was being written.
    Prefect asks."""
    return isinstance(state.data, (OSError, StillWritten))


def _has_our_limits(root: Path, version: int) -> bool:
    """Whether what a request may hold is what `package` in params.yaml says now: no stage reads
    that."""
    from model_registry.package import PackageSettings, is_as_packaged

    return is_as_packaged(version, load_section(root / "params.yaml", "package", PackageSettings))


@task(
    cache_policy=NO_CACHE,
    task_run_name="bring in {role}",
    retries=len(RETRY_PAUSES_S),
    retry_delay_seconds=RETRY_PAUSES_S,
    retry_condition_fn=_may_pass,
)
def bring_in(root: Path, role: str, watch: str) -> None:
    """New and changed labelled photos of a watched place come into the working copy, under DVC."""
    log = get_run_logger()
    folder = root / INCOMING / role
    table = read_wanted(folder).table
    if open_storage(watch, root).find(table) is None:
        log.warning("%s: no %s there (yet), so nothing new for %s", watch, table, role)
        return
    came = look(watch, folder)
    log.info(
        "%s: %d new photos, %d changed, %d gone, %d refused",
        watch,
        came.new,
        came.changed,
        came.gone,
        came.refused,
    )
    if came.refused:
        log.warning(
            "%s: %d lines brought no photo; %s says why", watch, came.refused, came.refused_list
        )


@task(cache_policy=NO_CACHE, task_run_name="package")
def packaged(root: Path, run: RecordedRun) -> int:
    """The exported model becomes a registered version, and gets its card."""
    from model_registry.model_card import write_card
    from model_registry.package import PackageSettings, package

    packaging = load_section(root / "params.yaml", "package", PackageSettings)
    version = package(outputs_of(root, declared(root)).export[EXPORT], run.run_id, packaging)
    write_card(packaging.model, version)
    get_run_logger().info("version %d of %s", version, packaging.model)
    return version


@task(cache_policy=NO_CACHE, task_run_name="compare")
def compared(root: Path, model: str, version: int, run: RecordedRun, reason: str) -> Decision:
    """Challenger against champion; the alias moves, or it does not and the artifact says why."""
    from model_registry.promotion_gate import PromoteSettings, decide

    rules = load_section(root / "params.yaml", "promote", PromoteSettings)
    lineage = {
        "visage.run": run.run_id,
        "visage.lock": lock_digest(root / "dvc.lock"),
        "visage.reason": reason,
    }
    decision = decide(model, version, rules, lineage)
    if decision.rows:
        create_table_artifact(
            key="comparison", table=decision.rows, description=_sentence(model, version, decision)
        )
    get_run_logger().info(_sentence(model, version, decision))
    return decision


def _sentence(model: str, version: int, decision: Decision) -> str:
    """The decision in words, a line for each reason."""
    verdict = (
        "is champion"
        if decision.promote
        else f"was refused, version {decision.champion} stays champion"
    )
    return f"version {version} of {model} {verdict}: " + ";\n".join(decision.reasons)


def main(root: Path = ROOT, words: list[str] | None = None) -> None:
    """The command line; prints the outcome. What the user can correct ends it with one line and
    exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.retrain", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--reason", default="by hand", help="why now, for the record")
    arguments = parser.parse_args(words)
    try:
        state: Any = retrain(arguments.reason, root, return_state=True)
        if state.is_cancelled():
            raise Busy(state.message)
        state.result()
    except (ValueError, StageFailed, Busy) as error:
        print(f"flows.retrain: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(state.message)


if __name__ == "__main__":
    main()
