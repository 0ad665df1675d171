"""Overhead of Ray Tune over the same trials without it, and the memory that trials share.

    python -m bench.sweep                            # 12,000 faces: 40 minutes on 2 cores
    python -m bench.sweep --faces 4000 --trials 4    # eight minutes

The default has as many faces as UTKFace's training split; in a small run the fixed costs weigh
more. Both sides train the same settings on the same synthetic faces, equally many trials at a time,
to their last epoch: without Tune, in processes that take one trial after the other; with Tune, as a
sweep (flows/sweep/driver.py). The sides take turns; figures are medians. The time before the first
epoch and after the last one (Ray's start, MLflow, tables) does not grow with the trials, and is
reported separately. The memory of a trial is its private share of the decoded faces, from Linux's
page accounting.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from flows.sweep.results import epochs_of
from flows.sweep.space import LAMBDA, Plan, SweepSettings, planned
from flows.sweep.trial import TrialPaths, pin, run_trial
from stages.presets import read_params
from stages.settings import load_section
from visage.data.face_table import FaceTable
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY

REPOSITORY = Path(__file__).resolve().parents[1]
CROP_PX = 48
LOOK_SECONDS = 30.0  # between two readings of the trials' pages; a reading delays the trials
SHARD_METADATA = {
    "alignment": {
        "template": "whole_face",
        "crop_px": CROP_PX,
        "face_scale": 1.0,
        "jpeg_quality": 90,
    },
    "detector": {
        "min_face_px": 20,
        "thresholds": [0.6, 0.7, 0.7],
        "factor": 0.709,
        "max_side_px": 1024,
        "landmark_passes": 2,
    },
}


def make(root: Path, num_faces: int, num_trials: int, epochs: int) -> Path:
    """Writes noise whose brightness is its label, and the settings of a sweep over `num_trials`
    lambdas."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(num_faces):
        label = float(rng.uniform(5, 95))
        buffer = io.BytesIO()
        crop_HWC = np.clip(rng.normal(40 + 1.7 * label, 20, (CROP_PX, CROP_PX, 3)), 0, 255).astype(
            np.uint8
        )
        Image.fromarray(crop_HWC).save(buffer, "JPEG", quality=90)
        row: dict[str, Any] = dict.fromkeys(FACE_SCHEMA.names)
        row |= {
            "photo_id": f"{index:06d}.jpg",
            "sha256": f"{index:064x}",
            "jpeg": buffer.getvalue(),
            "found": "mtcnn",
        }
        row |= {
            "box": [0.0] * 4,
            "landmarks": [0.0] * 10,
            "probability": 0.9,
            "num_faces": 1,
            "label": label,
        }
        rows.append(row | {"person": str(index), "split": "val" if index % 10 == 0 else "train"})

    (root / "faces").mkdir(parents=True)
    schema = FACE_SCHEMA.with_metadata({METADATA_KEY: json.dumps(SHARD_METADATA)})
    pq.write_table(pa.Table.from_pylist(rows, schema), root / "faces" / "part-00000.parquet")

    params = read_params(REPOSITORY / "params.yaml")
    params["finetune"] |= {"init": "scratch", "num_workers": 0}
    values = np.geomspace(0.01, 10, num_trials).tolist()
    params["sweep"] |= {
        "search": "grid",
        "space": {LAMBDA: {"kind": "choice", "values": values}},
        "epochs": epochs,
    }
    params["sweep"] |= {"grace_epochs": 1, "cpus_per_trial": 1}
    (root / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    return root


def plan_of(root: Path) -> Plan:
    params = root / "params.yaml"
    return planned(read_params(params), load_section(params, "sweep", SweepSettings), str(params))


# -------------------------------------------------------------------------------
# Without Tune
# -------------------------------------------------------------------------------

_tables: dict[str, FaceTable] = {}  # of a process that trains one trial after the other


def _begin(root: Path, cache_mb: int) -> None:
    for split in ("train", "val"):
        _tables[split] = FaceTable.open(root / "faces", [split], cache_mb)


def _train(root: Path, number: int, values: dict[str, Any]) -> None:
    plan, folder = plan_of(root), root / "bare" / str(number)
    folder.mkdir(parents=True)
    pin(1)
    torch.set_num_threads(1)
    paths = TrialPaths(folder=folder, backbone=folder, start=root / "start", faces=root / "faces")
    run_trial(plan.trial_settings(values), plan.max_epochs, paths, _tables, lambda _values: None)


def bare(root: Path, slots: int) -> None:
    """Runs the trials in separate processes, `slots` at a time; as with Tune, time is measured from
    when the faces are open."""
    plan = plan_of(root)
    cache_mb = plan.trial_settings({}).cache_mb
    with ProcessPoolExecutor(slots, get_context("spawn"), _begin, (root, cache_mb)) as pool:
        for one in [pool.submit(time.sleep, 1.0) for _ in range(slots)]:
            one.result()

        started = time.monotonic()
        for one in [pool.submit(_train, root, *each) for each in enumerate(plan.listed())]:
            one.result()
    print(f"epochs in {time.monotonic() - started:.1f} s", flush=True)


# -------------------------------------------------------------------------------
# Both sides
# -------------------------------------------------------------------------------


def run(command: list[str], root: Path) -> tuple[float, float, list[tuple[int, int]]]:
    """Seconds of the process and of its trials; (mapped, private) kB of the shared faces of
    each worker, at the highest reading."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "TQDM_DISABLE": "1",
    }
    shared: list[tuple[int, int]] = []
    started = time.monotonic()
    looked = started

    with (root / "output").open("w+", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - looked > LOOK_SECONDS:
                shared, looked = max(shared, _shared(process.pid)), time.monotonic()
        file.seek(0)
        output = file.read()

    found = re.search(r"epochs in ([\d.]+) s", output)
    if process.returncode != 0 or found is None:
        raise SystemExit(output)
    return time.monotonic() - started, float(found[1]), shared


def _shared(pid: int) -> list[tuple[int, int]]:
    """(mapped, private) kB of Ray's object store, of every trial's process."""
    found = []
    try:
        for worker in psutil.Process(pid).children(recursive=True):
            if worker.cmdline()[:1] != ["ray::ImplicitFunc.train"]:
                continue
            maps = [one for one in worker.memory_maps(grouped=False) if "plasma" in one.path]
            mapped = sum(one.rss for one in maps)
            private = sum(one.private_clean + one.private_dirty for one in maps)
            found.append((mapped >> 10, private >> 10))
    except psutil.Error:  # a process ended during the reading
        return []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    for name, number in (("faces", 12000), ("trials", 8), ("epochs", 6), ("turns", 2)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    slots = len(os.sched_getaffinity(0))
    if arguments.bare is not None:  # this process is the side without Tune
        bare(arguments.bare, slots)
        return

    rows: dict[str, list[tuple[float, float, float]]] = {"bare": [], "Tune": []}
    shared: list[tuple[int, int]] = []
    for _ in range(arguments.turns):
        for side in rows:
            with tempfile.TemporaryDirectory() as folder:
                root = make(
                    Path(folder) / "sweep", arguments.faces, arguments.trials, arguments.epochs
                )
                words = ["-m", "bench.sweep", "--bare", str(root)]
                if side == "Tune":
                    words = ["-m", "flows.sweep.driver", "--params", "params.yaml"]
                    words += ["--faces", "faces", "--backbone", "none", "--results", "results"]
                total, trials, seen = run([sys.executable, *words], root)
                epochs = sum(
                    epochs_of(file.parent)["seconds"].sum() for file in root.glob("**/history.csv")
                )
                rows[side].append((total, trials, epochs / slots))
                shared = seen or shared
                print(
                    f"{side}: {total:.1f} s, of which trials {trials:.1f} s, epochs "
                    f"{epochs / slots:.1f} s"
                )

    print(
        f"\n{arguments.trials} trials of {arguments.epochs} epochs, {arguments.faces} faces, "
        f"{slots} at a time\n"
    )
    print("| side | total, s | trials, s | epochs only, s |\n|---|---|---|---|")
    for side, those in rows.items():
        total, trials, epochs = (statistics.median(column) for column in zip(*those, strict=True))
        print(f"| {side} | {total:.1f} | {trials:.1f} | {epochs:.1f} |")
    for place, name in enumerate(("total", "trials", "epochs")):
        of_bare = statistics.median(each[place] for each in rows["bare"])
        of_tune = statistics.median(each[place] for each in rows["Tune"])
        print(f"Tune over bare, {name}: {of_tune / of_bare - 1:+.1%}")

    decoded_mb = arguments.faces * 3 * CROP_PX**2 / 1e6
    print(
        f"\ndecoded faces {decoded_mb:.0f} MB; each worker's mapped and private share of Ray's "
        f"store (MB): ",
        end="",
    )
    print(", ".join(f"{mapped / 1024:.0f} and {own / 1024:.1f}" for mapped, own in shared))


if __name__ == "__main__":
    main()
