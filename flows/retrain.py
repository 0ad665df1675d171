"""The scheduled job: new labelled data becomes a challenger, and the champion if it is no worse.

    visage retrain [--reason TEXT]   (or: make retrain; prefect.yaml runs it every night)

look (flows/intake/bring.py) -> reproduce and record (flows/reproduce.py) -> package -> compare ->
promote or refuse (model_registry/). Each step skips what is done already: after a kill at any point
the next run finishes the work, and without new data a run ends in seconds. One process works in a
working copy at a time; a second one ends at once and says so. A version replaces the champion only
if it passes the `promote` rules of params.yaml, on the faces that are test faces for both.
"""

from __future__ import annotations

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
from flows.pipeline.run_name import run_name
from flows.pipeline.stage_outputs import EXPORT, outputs_of
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
    without one. `experiment` is MLflow's. `notify` names the Prefect Webhook block that gets the
    result; null for no message."""

    watch: Mapping[str, str | None]
    experiment: str
    notify: str | None


@flow(name="retrain", flow_run_name=run_name("reason"))
def retrain(reason: str = "by hand", root: Path = ROOT) -> State[str]:
    """One night's work in the working copy; its result is the state's message. `reason` says why it
    runs now, for the record."""
    settings = load_section(root / "params.yaml", "retrain", RetrainSettings)

    try:
        with only_one(root):
            result = _retrained(root, settings, reason)
    except Busy as busy:
        return Cancelled(message=str(busy))
    except Exception as error:
        notify(settings.notify, f"visage: retraining ({reason}) failed: {error}")
        raise

    create_markdown_artifact(
        key="retrain", markdown=result, description="The result of the last retraining"
    )
    return Completed(message=result, data=result)


def _retrained(root: Path, settings: RetrainSettings, reason: str) -> str:
    model: str = read_params(root / "params.yaml")["package"]["model"]
    for role, watch in settings.watch.items():
        if watch is not None:
            bring_in(root, role, watch)
    settled = _settled(root, settings.experiment, model)
    if settled:
        return f"Nothing new: {settled}"

    _, run = reproduce_and_record(root, settings.experiment)
    version = packaged(root, run)
    decision = compared(root, model, version, run, reason)

    result = _sentence(model, version, decision)
    notify(settings.notify, f"visage: {result}")
    return result


def _settled(root: Path, experiment: str, model: str) -> str | None:
    """The decision on the result in the working copy; None where any step is still to do."""
    lock = root / "dvc.lock"
    if not lock.is_file() or stale(root):
        return None

    run_id = find(experiment, lock_digest(lock))
    version = run_id and version_of(model, run_id)
    decision = version and _has_our_limits(root, version) and decided(model, version)
    if not decision:
        return None
    return f"version {version} of {model} was {decision[0]} ({decision[1]})"


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Whether another look may help, after a broken connection to a store or a table that was being
    written; Prefect calls it after a failure."""
    return isinstance(state.data, (OSError, StillWritten))


def _has_our_limits(root: Path, version: int) -> bool:
    """Whether the version was packaged with the request limits that `package` in params.yaml has
    now: no stage reads them, so DVC does not see a change."""
    from model_registry.package import PackageSettings, is_as_packaged

    packaging = load_section(root / "params.yaml", "package", PackageSettings)
    return is_as_packaged(version, packaging)


@task(
    cache_policy=NO_CACHE,
    task_run_name="bring in {role}",
    retries=len(RETRY_PAUSES_S),
    retry_delay_seconds=RETRY_PAUSES_S,
    retry_condition_fn=_may_pass,
)
def bring_in(root: Path, role: str, watch: str) -> None:
    """Brings new and changed labelled photos from a watched place into the working copy, under
    DVC."""
    log = get_run_logger()
    folder = root / INCOMING / role
    table = read_wanted(folder).table
    # The place may be absent until the first photos arrive.
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
    """The exported model becomes a registered version, with its model card."""
    from model_registry.model_card import write_card
    from model_registry.package import PackageSettings, package

    packaging = load_section(root / "params.yaml", "package", PackageSettings)
    exported = outputs_of(root, declared(root)).export[EXPORT]
    version = package(exported, run.run_id, packaging)
    write_card(packaging.model, version)
    get_run_logger().info("version %d of %s", version, packaging.model)
    return version


@task(cache_policy=NO_CACHE, task_run_name="compare")
def compared(root: Path, model: str, version: int, run: RecordedRun, reason: str) -> Decision:
    """Compares the challenger with the champion. The alias moves to it, or the artifact says why
    not."""
    from model_registry.promotion_gate import PromoteSettings, decide

    rules = load_section(root / "params.yaml", "promote", PromoteSettings)
    lineage = {
        "visage.run": run.run_id,
        "visage.lock": lock_digest(root / "dvc.lock"),
        "visage.reason": reason,
    }
    decision = decide(model, version, rules, lineage)

    sentence = _sentence(model, version, decision)
    if decision.rows:
        create_table_artifact(key="comparison", table=decision.rows, description=sentence)
    get_run_logger().info(sentence)
    return decision


def _sentence(model: str, version: int, decision: Decision) -> str:
    """The decision as text, with a line for each reason."""
    if decision.promote:
        verdict = "is champion"
    else:
        verdict = f"was refused, version {decision.champion} stays champion"
    return f"version {version} of {model} {verdict}: " + ";\n".join(decision.reasons)
