"""Alignment on Ray against the local runner: photos per second, memory by the number of photos, and
a plan for millions.

    python -m bench.align_scale                 # 1,500 photos on both sides: two minutes
    python -m bench.align_scale --count 100000 --folder /big/disk   # 15 minutes on two cores

A stopped run resumes. The photos are synthetic, 200 px (--side), repeated under --count names (hard
links). The local side aligns at most LOCAL_COUNT of them. Rates are of the time between the first
and the last result, so that start-up is separate. Processor time is that of all processes of a
side; it depends less on other load. If both sides aligned the same photos, their files are compared
byte for byte.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from flows.scale_out.align_ray import TASK_CHUNKS, AlignOut, runner
from flows.scale_out.ray_cluster import connected
from stages.align import CHUNK_ROWS, AlignSettings, Runner, Work, align, run_local
from stages.face_shards import AlignedPhotos, RowDict
from visage.data.schemas import MANIFEST_SCHEMA
from visage.detection.mtcnn import DetectorSettings
from visage.synthetic import encode_face, sample_person, sample_photo

NUM_DRAWN = 200  # different photos
SIDE_PX = 200  # default side of a photo
LOCAL_COUNT = 1500
SHARD_ROWS = 2000
EVERY_SECONDS = 5.0  # between two readings of memory
STORE_BYTES = 500 * 2**20  # of Ray's object store
HOURS = 8.0  # the plan's limit for all photos
CORES_A_NODE = 32

SETTINGS = AlignSettings(
    crop_px=112,
    template="five_point_112",
    face_scale=0.9,
    jpeg_quality=95,
    detector=DetectorSettings(
        min_face_px=20,
        thresholds=(0.6, 0.7, 0.7),
        factor=0.709,
        max_side_px=1024,
        landmark_passes=2,
    ),
    fallback="none",
    min_detection_rate=0.5,
    shard_rows=SHARD_ROWS,
    num_workers=0,
)


@dataclass
class Watched:
    """A runner, and what was measured while it ran."""

    inner: Runner
    store_bytes: Callable[[], int]
    begun: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    last: float = 0.0
    num_first: int = 0
    num_photos: int = 0
    num_looked: int = 0  # photos at the last reading
    driver_seconds: float = 0.0  # processor time of the driver since the first result
    processor_seconds: float = 0.0  # the same of all processes
    # Each reading: photos, resident bytes, bytes in the object store.
    looks: list[tuple[int, int, int]] = field(default_factory=list)

    def __call__(self, work: Work, chunks: Iterable[list[RowDict]]) -> Iterator[AlignedPhotos]:
        process = psutil.Process()
        looked = 0.0
        driver = 0.0
        processor = 0.0
        for result in self.inner(work, chunks):
            self.last = time.perf_counter()
            self.num_photos += len(result)
            if not self.first:
                self.first = self.last
                self.num_first = self.num_photos
                driver = spent(process)
                processor = family_spent(process)

            if self.last - looked > EVERY_SECONDS:
                self.looks.append((self.num_photos, process.memory_info().rss, self.store_bytes()))
                self.driver_seconds = spent(process) - driver
                self.processor_seconds = family_spent(process) - processor
                self.num_looked = self.num_photos
                looked = self.last
            yield result

    @property
    def rate(self) -> float:
        """Photos per second between the first and the last result."""
        return (self.num_photos - self.num_first) / max(1e-9, self.last - self.first)

    @property
    def processor_ms(self) -> float:
        """Of all processes, per photo."""
        return 1e3 * self.processor_seconds / max(1, self.num_looked - self.num_first)


def spent(process: psutil.Process) -> float:
    """A process's processor seconds; 0 if it has ended."""
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.NoSuchProcess:
        return 0.0


def family_spent(process: psutil.Process) -> float:
    """Processor seconds of a process and all its descendants."""
    return spent(process) + sum(map(spent, process.children(recursive=True)))


def draw(folder: Path, count: int, side_px: int) -> None:
    """Writes `count` photos and their manifest, unless they exist."""
    manifest = folder / "manifest.parquet"
    if (folder / "gate.json").is_file() and pq.read_metadata(manifest).num_rows == count:
        return

    rng = np.random.default_rng(5)
    people = (sample_person(rng) for _ in range(NUM_DRAWN))
    photos = [encode_face(sample_photo(person, rng, clean=True), side_px) for person in people]
    sums = [hashlib.sha256(data).hexdigest() for data in photos]
    drawn = [folder / "drawn" / f"{number}.jpg" for number in range(NUM_DRAWN)]
    drawn[0].parent.mkdir(parents=True, exist_ok=True)
    for path, data in zip(drawn, photos, strict=True):
        path.unlink(missing_ok=True)
        path.write_bytes(data)
    none: RowDict = dict.fromkeys(MANIFEST_SCHEMA.names)
    with pq.ParquetWriter(folder / "manifest.parquet", MANIFEST_SCHEMA) as writer:
        for start in range(0, count, 1000):
            raw = folder / "raw" / f"{start // 1000:05d}"
            raw.mkdir(parents=True, exist_ok=True)
            rows = []
            for number in range(start, min(count, start + 1000)):
                path, which = raw / f"{number}.jpg", number % NUM_DRAWN
                path.unlink(missing_ok=True)
                os.link(drawn[which], path)
                photo = {
                    "photo_id": f"{raw.name}/{path.name}",
                    "sha256": sums[which],
                    "num_bytes": len(photos[which]),
                    "width": side_px,
                    "height": side_px,
                    "label": float(which % 80),
                    "person": f"p{which}",
                    "split": "train",
                }
                rows.append(none | photo)
            writer.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
    (folder / "quarantine.csv").write_text("photo_id,check,reason\n")
    (folder / "gate.json").write_text("{}")


def run(folder: Path, side: str, count: int, watched: Watched) -> dict[str, str]:
    """Aligns the first `count` photos on one side; the sha256 of each file that it wrote."""
    manifest = folder / f"manifest-{side}.parquet"
    out = folder / side
    if not manifest.is_file() or pq.read_metadata(manifest).num_rows != count:
        complete = pq.ParquetFile(folder / "manifest.parquet")
        left = count
        with pq.ParquetWriter(manifest, MANIFEST_SCHEMA) as writer:
            for batch in complete.iter_batches(batch_size=1000):
                writer.write_batch(batch[:left])
                left -= len(batch[:left])

    align(
        SETTINGS,
        manifest=manifest,
        quarantine=folder / "quarantine.csv",
        gate=folder / "gate.json",
        raw=folder / "raw",
        faces=out / "faces",
        rejects=out / "rejects.csv",
        summary=out / "align.json",
        report=lambda *_: None,
        runner=watched,
    )

    digests = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            digests[path.relative_to(out).as_posix()] = digest
    return digests


def store_bytes() -> int:
    """Bytes in the object stores of the connected Ray.

    From Ray's internals: its public resource counts are reservations, not use.
    """
    from ray._private import internal_api as untyped

    internal: Any = untyped
    state = internal.get_state_from_address(ray.get_runtime_context().gcs_address)
    reply = internal.get_memory_info_reply(state)
    return int(reply.store_stats.object_store_bytes_used)


def print_side(side: str, watched: Watched) -> None:
    """Prints one side's row of the table."""
    if not watched.num_photos:
        print(f"| {side} | 0 (its shards are finished: remove them to measure) | | | | |")
        return
    start = watched.first - watched.begun
    print(
        f"| {side} | {watched.num_photos:,} | {start:.1f} | {watched.last - watched.begun:.1f} | "
        f"{watched.rate:.1f} | {watched.processor_ms:.1f} |"
    )


def print_memory(looks: list[tuple[int, int, int]]) -> None:
    """Prints up to six readings of memory, spread over the run."""
    print("\n| photos done | driver resident, MB | object store, MB |\n|---|---|---|")
    places = {round(share * (len(looks) - 1)) for share in (0, 0.1, 0.25, 0.5, 0.75, 1)}
    for index in sorted(places):
        photos, resident, stored = looks[index]
        print(f"| {photos:,} | {resident / 1e6:.0f} | {stored / 1e6:.1f} |")


def print_plan(folder: Path, count: int, rate_per_worker: float, watched: Watched) -> None:
    """Prints an estimate for more photos, from this run's rate and sizes and from the driver's
    processor time per result."""
    photo = (folder / "drawn" / "0.jpg").stat().st_size
    face = sum(path.stat().st_size for path in (folder / "ray" / "faces").iterdir()) / count
    first_row = pq.ParquetFile(folder / "manifest.parquet").read_row_group(0).slice(0, 1)
    row = len(json.dumps(first_row.to_pylist()))

    ceiling = (watched.num_looked - watched.num_first) / max(1e-9, watched.driver_seconds)
    print(
        f"\nThe driver needs {1e6 / ceiling:.0f} us per photo: {ceiling / rate_per_worker:.0f} "
        f"actors saturate it."
    )
    print(
        f"One actor: {rate_per_worker:.1f} photos/s. A task, the loss when a worker dies: "
        f"{TASK_CHUNKS * CHUNK_ROWS} photos.\n"
    )

    columns = "photos", "hours, one core", f"cores for {HOURS:g} h", f"nodes of {CORES_A_NODE}"
    print(f"| {' | '.join(columns)} | photos, GB | faces, GB | scratch, GB |")
    print("|---|---|---|---|---|---|---|")
    for millions in (1, 5):
        photos = millions * 1_000_000
        hours = photos / rate_per_worker / 3600
        cores = max(1, -(-hours // HOURS))
        sizes = " | ".join(f"{photos * size / 1e9:.2f}" for size in (photo, face, row))
        print(
            f"| {photos:,} | {hours:.1f} | {cores:.0f} | {-(-cores // CORES_A_NODE):.0f} | {sizes} "
            f"|"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=LOCAL_COUNT)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("data/bench-align-scale"))
    parser.add_argument("--side", type=int, default=SIDE_PX, help="of a photo, in pixels")
    options = parser.parse_args()

    draw(options.folder, options.count, options.side)
    local_count = min(options.count, LOCAL_COUNT)
    local = Watched(functools.partial(run_local, options.workers), store_bytes=lambda: 0)
    of_local = run(options.folder, "local", local_count, local)
    out = AlignOut(actors_min=options.workers, actors_max=options.workers, cpus_per_actor=1)
    with connected(STORE_BYTES):
        on_ray = Watched(runner(out, options.folder / "scratch"), store_bytes)
        of_ray = run(options.folder, "ray", options.count, on_ray)

    print(
        "\n| side | photos | first result after, s | all, s | photos/s | processor ms per photo |"
    )
    print("|---|---|---|---|---|---|")
    print_side("local processes", local)
    print_side("actors on Ray", on_ray)
    if local.num_photos and on_ray.num_photos:
        print(
            f"\nRay / local, {options.workers} workers each: photos/s "
            f"{on_ray.rate / local.rate:.3f}, "
            f"processor per photo {on_ray.processor_ms / local.processor_ms:.3f}."
        )
    if local_count == options.count:
        print(
            f"The {len(of_ray)} files are {'equal' if of_ray == of_local else 'NOT EQUAL'} "
            f"on both sides."
        )
    if on_ray.num_photos:
        print_memory(on_ray.looks)
        print_plan(options.folder, options.count, on_ray.rate / options.workers, on_ray)


if __name__ == "__main__":
    main()
