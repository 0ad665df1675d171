"""The results of trials: their table, the sensitivity tables in the form of the paper's Table 7,
the best setting."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from flows.sweep.results import (
    Ended,
    best_arguments,
    best_of,
    page,
    parts_table,
    trials_table,
    write_results,
)
from flows.sweep.space import LAMBDA, STEP, Plan
from tests.flows.sweep.test_space import LAMBDAS, STEPS, plan_of
from tests.small_faces import LOSS

SIGMA = "labels.fixed_sigma"
DVC = str(Path(sys.executable).with_name("dvc"))


def ended(
    name: str, values: dict[str, Any], errors: list[float], status: str = "finished"
) -> Ended:
    rows = [
        {"epoch": number + 1, "val_mae": error, "seconds": 2.0}
        for number, error in enumerate(errors)
    ]
    table = pd.DataFrame(rows or {"epoch": [], "val_mae": [], "seconds": []})
    return Ended(name=name, values=values, status=status, reason=status, epochs=table)


def drawn() -> tuple[Plan, list[Ended]]:
    def values(lambda_: float, step: float, sigma: float) -> dict[str, Any]:
        return {LAMBDA: lambda_, STEP: step, SIGMA: sigma}

    return plan_of(), [
        ended("a", values(0.02, 5.0, 6.0), [9.0, 8.0, 6.0, 7.0]),
        ended("b", values(0.03, 10.0, 7.0), [9.0, 7.0, 6.0, 5.0]),
        ended("c", values(5.0, 10.0, 19.0), [9.0, 8.5], "ended early"),
        ended("d", values(9.0, 20.0, 19.0), [], "diverged"),
    ]


def test_the_table_of_trials() -> None:
    plan, trials = drawn()
    table = trials_table(plan, trials).set_index("trial")
    columns = ["epochs", "best_val_mae", "last_val_mae", "grace_val_mae", "seconds"]
    assert table.loc["a", columns].tolist() == [4, 6.0, 7.0, 8.0, 8.0]
    assert table["status"].tolist() == ["finished", "finished", "ended early", "diverged"]
    assert math.isnan(table.loc["d", "last_val_mae"])


@pytest.mark.parametrize(
    ("reduction", "sums", "mean"), [("sum", 0.02, 0.02 / 21), ("mean", 0.02 * 21, 0.02)]
)
def test_lambda_stands_on_both_scales(reduction: str, sums: float, mean: float) -> None:
    plan = plan_of({"loss": LOSS | {"kl_reduction": reduction}})
    _, trials = drawn()
    row = trials_table(plan, trials[:1]).iloc[0]

    assert row["num_labels"] == 21
    assert (row["lambda_sum"], row["lambda_mean"]) == pytest.approx((sums, mean))


def test_parts_of_a_range_and_values_of_a_choice() -> None:
    plan, trials = drawn()
    parts = parts_table(plan, trials_table(plan, trials)).set_index(["dimension", "value"])

    lambdas = parts.loc[LAMBDA]
    assert lambdas.index.tolist() == [
        "0.01 to 0.0562",
        "0.0562 to 0.316",
        "0.316 to 1.78",
        "1.78 to 10",
    ]
    assert lambdas[["trials", "finished", "ended early", "diverged"]].to_numpy().tolist() == [
        [2, 2, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [2, 0, 1, 1],
    ]

    first = lambdas.iloc[0]
    assert (first["val_mae"], first["grace_val_mae"]) == (6.0, 7.5)
    half = 12.706 * math.sqrt(2) / math.sqrt(2)  # Student's t with one degree of freedom
    assert (first["val_mae_low"], first["val_mae_high"]) == pytest.approx(
        (6 - half, 6 + half), rel=1e-4
    )

    assert parts.loc[STEP].index.tolist() == ["5 (21)", "10 (11)", "20 (6)"]
    assert parts.loc[STEP]["val_mae"].tolist()[:2] == [7.0, 5.0]


def test_lines_make_table_7() -> None:
    """A dimension's rows are those of its own line: the others as params.yaml has them."""
    plan = plan_of(search="lines", space=LAMBDAS | STEPS)
    trials = [
        ended(str(number), row, [row[LAMBDA] + row[STEP]] * 4)
        for number, row in enumerate(plan.listed())
    ]
    table = trials_table(plan, trials)
    text = page(plan, table, parts_table(plan, table))

    assert "| lambda | trials | finished | MAE, finished |" in text
    assert "| 0.01 | 1 | 1 | 10.010 |" in text
    assert "| step (K) | trials |" in text
    assert "| 2.5 (41) | 1 | 1 | 3.500 |" in text
    assert "From the lowest mean to the highest: 9.990." in text
    assert "summed over the K labels (paper)" in text


def test_the_best_is_a_finished_trial_by_its_last_epoch() -> None:
    plan, trials = drawn()
    best = best_of(trials_table(plan, trials))
    assert best is not None
    assert best["trial"] == "b"
    assert best_arguments(plan, best) == f"-S {LAMBDA}=0.03\n-S {STEP}=10.0\n-S {SIGMA}=7.0\n"
    assert best_of(trials_table(plan, trials[2:])) is None


def test_files(tmp_path: Path) -> None:
    plan, trials = drawn()
    write_results(plan, trials_table(plan, trials), tmp_path / "sweep")

    names = [
        "best.args",
        "parallel.png",
        "sensitivity.csv",
        "sensitivity.md",
        "sensitivity.png",
        "trials.csv",
    ]
    assert sorted(file.name for file in (tmp_path / "sweep").iterdir()) == names

    write_results(plan, trials_table(plan, trials[2:]), tmp_path / "sweep")
    assert sorted(file.name for file in (tmp_path / "sweep").iterdir()) == [*names[2:4], names[5]]


def test_dvc_exp_run_takes_the_best_setting(tmp_path: Path) -> None:
    """A stage of a new repository runs with it: words and very small numbers arrive, and the other
    keys stay."""
    plan = plan_of(
        space={
            LAMBDA: {"kind": "loguniform", "low": 1e-9, "high": 1.0},
            STEP: {"kind": "choice", "values": [5.0, 20.0]},
            "finetune.loss.kl_reduction": {"kind": "choice", "values": ["sum", "mean"]},
            "finetune.recipes.small.batch_size": {"kind": "integer", "low": 4, "high": 9},
        }
    )
    values = {
        LAMBDA: 1.25e-7,
        STEP: 20.0,
        "finetune.loss.kl_reduction": "mean",
        "finetune.recipes.small.batch_size": 6,
    }

    write_results(plan, trials_table(plan, [ended("a", values, [5.0])]), tmp_path / "sweep")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(dict(plan.params)), encoding="utf-8")
    stage = {
        "cmd": "cp params.yaml seen.yaml",
        "params": ["finetune", "labels"],
        "outs": ["seen.yaml"],
    }
    (tmp_path / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"finetune": stage}}), encoding="utf-8"
    )
    (tmp_path / ".gitignore").write_text("seen.yaml\nsweep\n", encoding="utf-8")

    git = "git -c user.name=x -c user.email=x@example.com"
    done = subprocess.run(
        f"git init -q && {DVC} init -q && git add . && {git} commit -qm x && "
        f"{DVC} exp run $(cat sweep/best.args)",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    document = yaml.safe_load((tmp_path / "seen.yaml").read_text(encoding="utf-8"))
    seen = document["finetune"]
    assert float(seen["loss"]["lambda_"]) == 1.25e-7
    assert seen["loss"]["kl_reduction"] == "mean"
    assert seen["recipes"]["small"]["batch_size"] == 6
    assert document["labels"]["grid"]["step"] == 20.0
    assert seen["method"] == plan.params["finetune"]["method"]
