"""Promotion: the rules on made-up predictions, the aliases on real versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from model_registry import promote as registry
from model_registry import promotion_gate as comparison
from model_registry.mlflow_client import connect, experiment
from model_registry.package import fetch, package
from model_registry.promote import champion, decided, history, rollback
from model_registry.promotion_gate import (
    Contender,
    Decision,
    PromoteSettings,
    decide,
    judge,
    shared_faces,
)
from model_registry.record import PREDICTIONS
from tests.model_registry.served import SETTINGS as PACKAGE
from tests.services import mlflow_server, postgres, s3
from tests.small_model import small_model

MODEL = PACKAGE.model
RULES = PromoteSettings(
    max_mae_increase=0.3,
    max_group_mae_increase=1.0,
    min_group_faces=20,
    band_width=10.0,
    max_coverage_loss=0.05,
    max_size_ratio=1.5,
    max_latency_ratio=1000.0,
    min_shared_faces=0.9,
    num_resamples=200,
    interval=0.95,
    seed=0,
)
NUM_FACES = 200


def predictions(
    error: Any = 4.0, half_width: float = 5.5, num_faces: int = NUM_FACES, seed: int = 0
) -> pd.DataFrame:
    """Test faces with their labels, predicted `error` years off (one for all, or one each),
    alternately up and down."""
    rng = np.random.default_rng(seed)
    label = rng.uniform(20, 60, num_faces).round()
    value = label + np.where(np.arange(num_faces) % 2, 1, -1) * np.broadcast_to(error, num_faces)
    # four of five labels lie inside, whatever the error: the 80 % interval is right unless a test
    # makes it wrong
    reach = np.where(
        np.arange(num_faces) % 5, np.abs(value - label) + half_width, 0.5 * np.abs(value - label)
    )
    return pd.DataFrame(
        {
            "sha256": [f"{row:064x}" for row in range(num_faces)],
            "person": [f"p{row // 2}" for row in range(num_faces)],
            "label": label,
            "split": "test",
            "sex": np.where(np.arange(num_faces) < 40, "female", "male"),
            "ethnicity": None,
            "prediction": value,
            "low": value - reach,
            "high": value + reach,
        }
    )


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("export"))


Verdict = Callable[..., Decision]


@pytest.fixture
def verdict(export: Path) -> Verdict:
    def judged(
        mine: pd.DataFrame, theirs: pd.DataFrame, rules: PromoteSettings = RULES
    ) -> Decision:
        ours = Contender(version=2, predictions=mine, folder=export)
        return judge(ours, Contender(version=1, predictions=theirs, folder=export), rules)

    return judged


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_a_better_one_passes(verdict: Verdict) -> None:
    decision = verdict(predictions(3.0), predictions(4.0))
    assert decision.promote
    assert decision.reasons == ("no worse than version 1 on 200 shared test faces",)
    assert {"MAE", "MAE, sex female", "MAE, label from 30.0", "coverage of the 80 % interval"} <= {
        check.name for check in decision.checks
    }


def test_a_worse_one_is_refused_with_figures(verdict: Verdict) -> None:
    decision = verdict(predictions(4.5), predictions(4.0))
    assert failed(decision) == ["MAE"]
    assert decision.reasons[0].startswith(
        "MAE 4.500 against 4.000: higher by 0.500 (95% interval 0.500 to 0.500)"
    )


def test_provably_worse_is_refused_though_it_is_little(verdict: Verdict) -> None:
    assert failed(verdict(predictions(4.1), predictions(4.0))) == ["MAE"]


def test_as_good_within_chance_passes(verdict: Verdict) -> None:
    noise = np.random.default_rng(1).normal(0, 2, NUM_FACES)
    mine = predictions(np.abs(4.0 + noise - noise.mean() + 0.02))
    assert verdict(mine, predictions(4.0)).promote


def test_one_group_may_not_pay_for_the_others(verdict: Verdict) -> None:
    """Forty women get 1.5 years more, the men less, so that the total is better."""
    error = np.where(np.arange(NUM_FACES) < 40, 5.5, 3.0)
    assert failed(verdict(predictions(error), predictions(4.0))) == ["MAE, sex female"]
    few = replace(RULES, min_group_faces=41)
    assert verdict(predictions(error), predictions(4.0), few).promote


def test_people_are_drawn_with_all_their_faces(verdict: Verdict) -> None:
    """A difference that one person makes alone is chance; the same over a hundred people is not."""
    error, alone = np.full(NUM_FACES, 4.0), predictions(4.0)
    error[: NUM_FACES // 2] += 0.5
    alone["person"] = np.where(np.arange(NUM_FACES) < NUM_FACES // 2, "one", alone["person"])
    mine = predictions(error)
    assert failed(verdict(mine, predictions(4.0))) == ["MAE"]
    assert verdict(mine.assign(person=alone["person"]), alone).promote


def test_an_interval_that_holds_less_is_refused(verdict: Verdict) -> None:
    mine = predictions(4.0)
    mine["low"], mine["high"] = mine["prediction"] - 1, mine["prediction"] + 1
    assert failed(verdict(mine, predictions(4.0))) == ["coverage of the 80 % interval"]


def test_a_larger_or_slower_one_is_refused(verdict: Verdict, export: Path) -> None:
    tight = replace(RULES, max_size_ratio=0.9, max_latency_ratio=0.01)
    assert failed(verdict(predictions(), predictions(), tight)) == [
        "bytes of the weights",
        "milliseconds a face",
    ]
    assert (export / "model.safetensors").is_file()


def test_only_faces_that_are_test_for_both_with_one_label_count(verdict: Verdict) -> None:
    mine, theirs = predictions(3.0), predictions(4.0)
    mine.loc[0, "label"] += 1
    shared = shared_faces(mine.iloc[:190], pd.concat([theirs, theirs.iloc[:3]]))
    assert len(shared) == 189
    decision = verdict(mine.iloc[:100], theirs)
    assert failed(decision) == ["shared test faces"]
    twice = pd.concat([theirs, theirs.iloc[:40]])
    assert verdict(twice, twice).promote
    assert "package.model" in decision.reasons[0]
    assert failed(verdict(mine.iloc[:0], theirs.iloc[:0])) == ["shared test faces"]


@pytest.mark.parametrize(
    ("name", "value"), [("min_shared_faces", 0.0), ("band_width", 0.0), ("interval", 1.0)]
)
def test_impossible_rules_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(RULES, **{name: value})


# -------------------------------------------------------------------------------
# Aliases
# -------------------------------------------------------------------------------


def _registered(export: Path, place: Path, table: pd.DataFrame) -> int:
    """A version whose run holds these predictions."""
    client = connect()
    run_id = client.create_run(experiment("visage")).info.run_id
    table.to_parquet(place / PREDICTIONS)
    client.log_artifact(run_id, str(place / PREDICTIONS))
    return package(export, run_id, PACKAGE)


@pytest.fixture
def versions(local_registry: Path, export: Path) -> Callable[[pd.DataFrame], int]:
    """Registers a version whose run holds these predictions."""
    return partial(_registered, export, local_registry)


def test_a_retraining_is_promoted_or_refused_and_remembered(
    versions: Callable[[pd.DataFrame], int],
) -> None:
    client = connect()
    first, worse, better = (versions(predictions(error)) for error in (4.0, 6.0, 3.0))
    assert champion(MODEL) is None
    assert decide(MODEL, first, RULES, {"visage.lock": "abc"}).promote
    assert champion(MODEL) == first
    assert not decide(MODEL, worse, RULES, {}).promote
    assert champion(MODEL) == first
    assert int(client.get_model_version_by_alias(MODEL, "challenger").version) == worse
    tags = client.get_model_version(MODEL, str(worse)).tags
    assert tags["visage.decision"] == "refused"
    assert tags["visage.reasons"].startswith("MAE 6.000 against 4.000")
    assert client.get_model_version(MODEL, str(first)).tags["visage.lock"] == "abc"
    decide(MODEL, worse, RULES, {})
    assert decide(MODEL, better, RULES, {}).promote
    assert [(event["action"], event["version"]) for event in history(MODEL)] == [
        ("promoted", first),
        ("refused", worse),
        ("promoted", better),
    ]
    assert rollback(MODEL) == first == champion(MODEL)
    with pytest.raises(ValueError, match="no earlier champion"):
        rollback(MODEL)


@pytest.mark.parametrize("step", ["set_tags", "promote", "set_registered_model_alias", "add_event"])
def test_a_crash_anywhere_leaves_a_registry_that_the_next_call_completes(
    versions: Callable[[pd.DataFrame], int], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Between any two steps the champion is the old one or the new one, and deciding again ends as
    if nothing was."""
    first, better = (versions(predictions(error)) for error in (4.0, 3.0))
    decide(MODEL, first, RULES, {})

    def crash(*arguments: Any, **_: Any) -> None:
        if step != "set_registered_model_alias" or arguments[2] == "champion":
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        place: Any = {"set_registered_model_alias": MlflowClient, "add_event": registry}.get(
            step, comparison
        )
        broken.setattr(place, step, crash)
        with pytest.raises(KeyboardInterrupt):
            decide(MODEL, better, RULES, {})
    assert champion(MODEL) == (better if step == "add_event" else first)
    if step != "add_event":
        assert decided(MODEL, better) is None
    assert decide(MODEL, better, RULES, {}).promote
    assert champion(MODEL) == better
    assert decided(MODEL, better) == (
        "promoted",
        "no worse than version 1 on 200 shared test faces",
    )
    assert rollback(MODEL) == first


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_rollback_that_died_never_brings_back_what_it_took_away(
    versions: Callable[[pd.DataFrame], int], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Asked for again, it ends where it meant to; died after the alias moved, it was done and the
    next goes on."""
    first, good, bad = (versions(predictions(4.0)) for _ in range(3))
    for version in (first, good, bad):
        registry.promote(MODEL, version, "by hand")
    move = MlflowClient.set_registered_model_alias

    def crash(*arguments: Any) -> None:
        if step == "after":
            move(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_registered_model_alias", crash)
        with pytest.raises(KeyboardInterrupt):
            rollback(MODEL)
    assert champion(MODEL) == (good if step == "after" else bad)
    assert rollback(MODEL) == (first if step == "after" else good)


def test_a_champion_named_by_other_means_is_respected(
    versions: Callable[[pd.DataFrame], int],
) -> None:
    first, second = versions(predictions(4.0)), versions(predictions(4.0))
    decide(MODEL, first, RULES, {})
    connect().set_registered_model_alias(MODEL, "champion", str(second))
    assert rollback(MODEL) == first
    assert [event["action"] for event in history(MODEL)] == [
        "promoted",
        "found as champion",
        "rolled back to",
    ]


def test_another_champion_meanwhile_stops_the_promotion(
    versions: Callable[[pd.DataFrame], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (versions(predictions(4.0)) for _ in range(3))
    decide(MODEL, first, RULES, {})

    def slow(client: MlflowClient, model: str, *_: Any) -> Decision:
        client.set_registered_model_alias(model, "champion", str(third))
        return Decision(promote=True, champion=first, reasons=("as good",), checks=())

    monkeypatch.setattr(comparison, "compare", slow)
    with pytest.raises(ValueError, match="another champion"):
        decide(MODEL, second, RULES, {})
    assert champion(MODEL) == third


def test_unknown_versions_are_refused(versions: Callable[[pd.DataFrame], int]) -> None:
    versions(predictions(4.0))
    with pytest.raises(ValueError, match="no version 9"):
        registry.promote(MODEL, 9, "by hand")


@pytest.mark.slow
def test_behind_a_server_with_postgresql_and_s3(
    tmp_path: Path, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages travel through the server into the bucket and back; the environment is all that says
    so."""
    with (
        postgres() as database,
        s3("models") as store,
        mlflow_server(database.uri, store.root, store.environment, tmp_path) as address,
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        first, better = (_registered(export, tmp_path, predictions(error)) for error in (4.0, 3.0))
        decide(MODEL, first, RULES, {})
        assert decide(MODEL, better, RULES, {}).promote
        assert champion(MODEL) == better
        database.restart()
        assert rollback(MODEL) == first
        folder = fetch(f"models:/{MODEL}@champion", tmp_path / "fetched")
        assert (folder / "config.json").read_bytes() == (export / "config.json").read_bytes()


def test_the_models_page_tells_the_newest_events_as_a_table() -> None:
    events = [
        {
            "time": f"2026-03-{day:02d}T03:00:00+0000",
            "action": "refused",
            "version": day,
            "reason": "MAE|bias " * 200 if day == 28 else "two\nlines",
        }
        for day in range(1, 29)
    ]
    lines = registry.describe(events).replace("&nbsp;", "").splitlines()
    assert lines[4].startswith("| 2026-03-28 03:00 | 28 | refused | MAE\\|bias MAE\\|bias ")
    assert len(lines[4]) < 260
    assert lines[5] == "| 2026-03-27 03:00 | 27 | refused | two lines |"
    assert len(lines) == 4 + registry.MAX_EVENTS
    assert len(registry.describe(events * 2)) < 5000


def test_every_event_renews_the_models_description(
    versions: Callable[[pd.DataFrame], int],
) -> None:
    version = versions(predictions(4.0))
    registry.promote(MODEL, version, "by hand")
    about = connect().get_registered_model(MODEL).description
    assert f"| {version}&nbsp;&nbsp; | promoted&nbsp;&nbsp; | by hand |" in about
