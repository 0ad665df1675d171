"""A small pre-training on Ray as a driver process: `python -m tests.flows.train_job FOLDER EPOCHS`.

FOLDER holds `faces`, and the job writes to it. It ends as stages do, with one line and the status
of stages/exit_status.py.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from flows.scale_out.pretrain_ray import PretrainOut, runner
from flows.scale_out.ray_cluster import connected
from stages.exit_status import exit_status_of
from stages.pretrain import pretrain
from tests.small_faces import RECIPE, pretrain_settings

OUT = PretrainOut(
    min_workers=1,
    num_workers=2,
    cpus_per_worker=1,
    gpus_per_worker=0,
    max_failures=3,
    resize_seconds=1e6,
    micro_batches=2,
)


def main() -> None:
    folder = Path(sys.argv[1])
    epochs = int(sys.argv[2])
    recipe = dataclasses.replace(RECIPE, batch_size=16, learning_rate=5e-3)
    settings = pretrain_settings(epochs=epochs, recipes={"small": recipe})

    with connected():
        try:
            pretrain(
                settings,
                faces=folder / "faces",
                checkpoints=folder / "checkpoints",
                backbone=folder / "backbone",
                history=folder / "history.csv",
                runner=runner(OUT, folder / "scratch"),
            )
        except (ValueError, OSError) as error:
            print(f"ended: {error}", flush=True)
            raise SystemExit(int(exit_status_of(error))) from None


if __name__ == "__main__":
    main()
