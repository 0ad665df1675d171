"""Photos scored per second, and memory, against a plain loop over `Model.predict`.

    python -m bench.score                           # 2,000 synthetic photos, 2 processes
    python -m bench.score --count 500 --workers 1

Photos have 128 px, the model is tiny-utkface-coral. The plain loop calls `Model.predict` for
one path after the other, in one process of one thread, with the model already loaded. Ours is
`flows.score.flow.score_photos`, from listing the folder to the last shard, with the start of its
processes. Memory is the resident memory of the largest process, after the first shards and at the
end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from flows.score.flow import score_photos
from flows.score.shards import ModelFolder, ScoreSettings
from stages.ingest.records import REPOSITORY
from stages.settings import load_section
from visage.inference.loading import load
from visage.synthetic import DrawnSet, draw_set

MODEL = REPOSITORY / "visage" / "released" / "tiny-utkface-coral"
SHARD_PHOTOS = 100


def draw(folder: Path, count: int) -> list[Path]:
    """Synthetic photos in a folder, and their paths."""
    wanted = DrawnSet(
        num_people=count,
        photos_per_person=1,
        px=128,
        seed=0,
        age_span_years=90.0,
        label_noise=0.0,
        dirt={},
    )
    draw_set(folder, wanted, num_workers=1)
    return sorted(folder.rglob("*.jpg"))


def plain(paths: list[Path]) -> float:
    """Seconds of the baseline: one photo after the other."""
    predictor = load(MODEL)
    predictor.predict(paths[0])  # warm-up

    begin = time.perf_counter()
    for path in paths:
        predictor.predict(path)
    return time.perf_counter() - begin


def ours(photos: Path, output: Path, num_workers: int) -> tuple[float, list[float]]:
    """Seconds, and MB of the largest process after each shard."""
    settings = load_section(REPOSITORY / "params.yaml", "score", ScoreSettings)
    settings = replace(settings, shard_photos=SHARD_PHOTOS, num_workers=num_workers)
    resident: list[float] = []

    def look(*_: int) -> None:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        # With workers, this process holds no model.
        workers = processes[1:] if num_workers > 0 else processes
        resident.append(max(process.memory_info().rss for process in workers) / 1e6)

    begin = time.perf_counter()
    score_photos(str(photos), output, ModelFolder(folder=MODEL, version=None), settings, look)
    return time.perf_counter() - begin, resident


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.score", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        paths = draw(photos, arguments.count)
        seconds, resident = ours(photos, Path(folder) / "scores", arguments.workers)
        plain_seconds = plain(paths)

    sides = {"plain loop": plain_seconds, f"score, {arguments.workers} processes": seconds}
    for name, taken in sides.items():
        print(f"{name:22} {arguments.count / taken:7.1f} photos per second")

    quarter = max(1, len(resident) // 4)
    early = max(resident[:quarter])
    late = max(resident[-quarter:])
    print(
        f"largest process: {early:.0f} MB in the first quarter, {late:.0f} MB in the last "
        f"({late - early:+.0f})"
    )


if __name__ == "__main__":
    main()
