"""Pre-training: throughput against the compute-bound limit, memory, shuffling, and a plan for many
GPUs.

    python -m bench.pretrain_scale          # TinyAgeNet, 96 px, 1 and 2 processes: 5 minutes
    python -m bench.pretrain_scale --plan   # only the plan, from the costs that are listed below

Each process has one thread. Measured are
- the limit: a training step on a batch in memory, without reading, in one and in two processes;
- reading, decoding, augmenting and training in 1 and 2 processes (gloo, as under Ray);
- an all-reduce;
- the stream alone: its peak memory for growing data sets, the share of same-person pairs in its
  batches.

Processor time is reported beside wall time, because it depends less on other load. `step_seconds`
is the only model of a step: it is compared with these measurements, and then used for 8 and 64
GPUs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import distributed as torch_distributed
from torch.nn import functional

from stages.pretrain import PretrainSettings, Training
from stages.settings import load_section
from visage.data.augment import training_view
from visage.data.face_stream import FaceSplit, drawn_batches, same_person_pairs
from visage.data.preprocess import evaluation_faces
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY
from visage.device import available_device
from visage.networks import NetworkSettings, build
from visage.training import distributed
from visage.training.loop import Batch, Task, fit

PARAMS = Path(__file__).resolve().parent.parent / "params.yaml"
FORKS = get_context("forkserver")
PHOTOS_PER_PERSON = 20
Seconds = tuple[float, float]  # wall, processor


# -------------------------------------------------------------------------------
# The model
# -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The parts of a step.

    `compute_seconds`: network and optimiser, for a process's share of the batch. `feed_seconds`:
    reading, decoding and augmenting it, on one core. `feed_cores`: cores that only do this (0: the
    computing core does it, too). `reduce_seconds`: the all-reduce of the gradients.
    """

    compute_seconds: float
    feed_seconds: float
    feed_cores: int
    reduce_seconds: float


def step_seconds(costs: Costs) -> float:
    """Seconds of a step: with separate feeding cores, the slower of computing and feeding; else
    their sum.

    The all-reduce is added after the backward pass: the part that DistributedDataParallel overlaps
    is ignored.
    """
    busy = costs.compute_seconds + costs.reduce_seconds
    if costs.feed_cores == 0:
        return busy + costs.feed_seconds
    return max(busy, costs.feed_seconds / costs.feed_cores)


def reduce_seconds(num_bytes: float, num_processes: int, bytes_per_second: float) -> float:
    """Seconds of a ring all-reduce: every process sends and receives 2 (n - 1) / n of the bytes."""
    return 2 * (num_processes - 1) / num_processes * num_bytes / bytes_per_second


def pair_share(
    window_faces: int, photos_per_person: float, num_faces: float, num_ranks: int
) -> float:
    """Expected share of a global batch's pairs that show the same person, with shards sorted by
    person.

    A process reads a person's photos in a row and draws each of them from its buffer after W faces
    on average. Two of them are in the buffer together for half of that time: photos / 2W. Pairs of
    two processes show the same person only at a border of their shards.
    """
    ideal = photos_per_person / num_faces
    own = max(photos_per_person / (2 * window_faces), ideal * num_ranks)
    return own / num_ranks if num_ranks > 1 else own


# -------------------------------------------------------------------------------
# Measurements
# -------------------------------------------------------------------------------


def write_random(folder: Path, num_faces: int, px: int, num_shards: int) -> Path:
    """Shards of random crops with about as much detail as a face, `PHOTOS_PER_PERSON` of each
    person in a row."""
    rng = np.random.default_rng(0)
    shard_metadata = {METADATA_KEY: json.dumps({"alignment": {"crop_px": px}, "detector": {}})}
    crops = []
    for _ in range(min(num_faces, 2000)):
        coarse = Image.fromarray(rng.integers(0, 256, (px // 6, px // 6, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((px, px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        crops.append(buffer.getvalue())

    folder.mkdir(parents=True, exist_ok=True)
    for shard, places in enumerate(np.array_split(np.arange(num_faces), num_shards)):
        rows = [
            dict.fromkeys(FACE_SCHEMA.names)
            | {"photo_id": f"{place}.jpg", "sha256": f"{place:064x}", "split": "train"}
            | {"jpeg": crops[place % len(crops)], "person": f"{place // PHOTOS_PER_PERSON:06d}"}
            for place in places.tolist()
        ]
        table = pa.Table.from_pylist(rows, FACE_SCHEMA.with_metadata(shard_metadata))
        pq.write_table(table, folder / f"part-{shard:05d}.parquet", compression={"jpeg": "none"})
    return folder


def training_of(settings: PretrainSettings, faces: Path, checkpoint: Path) -> Training:
    split = FaceSplit.open(faces, "train")
    people = {name: index for index, name in enumerate(sorted(split.people()))}
    nobody = FaceSplit.open(faces, "val").of(people, with_landmarks=False)
    return Training(
        settings=settings,
        faces=split.of(people, with_landmarks=False),
        validation=nobody,
        checkpoint=checkpoint,
        fingerprint="",
        micro_batches=1,
    )


def train_fed(training: Training) -> None:
    """Trains with reading, decoding and augmenting; writes the last epoch's seconds per step."""
    clocks: list[Seconds] = []
    training(lambda _step, _values: clocks.append((time.perf_counter(), time.process_time())))
    count = training.faces.num_batches(training.recipe.batch_size, distributed.num_ranks())
    write_seconds(training, [(clocks[-1][place] - clocks[-2][place]) / count for place in (0, 1)])


def write_seconds(training: Training, seconds: list[float]) -> None:
    """Writes wall and processor seconds beside the checkpoint, one file per process."""
    training.checkpoint.with_suffix(f".{distributed.rank()}.json").write_text(json.dumps(seconds))


def read_seconds(training: Training) -> Seconds:
    """Wall time of the slowest process, and the mean processor time."""
    paths = training.checkpoint.parent.glob(f"{training.checkpoint.stem}.*.json")
    figures = [json.loads(path.read_text()) for path in paths]
    return max(wall for wall, _ in figures), statistics.mean(cpu for _, cpu in figures)


def train_resident(training: Training, num_faces: int) -> None:
    """Trains as many epochs and steps on one batch of `num_faces` in memory."""
    settings, recipe, device = training.settings, training.recipe, available_device()
    faces = training.faces
    crops, target = next(faces.in_order(num_faces, num_workers=0, rank=0, num_ranks=1))
    crops = crops._replace(view_BCHW=crops.view_BCHW.to(device))
    batch = Batch(evaluation_faces(crops, settings.normalise), (target.to(device),))
    count = faces.num_batches(recipe.batch_size, 1)

    def batches(_generator: torch.Generator) -> Iterator[Batch]:
        return iter([batch] * count)

    task = Task(
        batches=batches,
        num_batches=count,
        loss=functional.cross_entropy,
        auxiliary_weight=settings.auxiliary_weight,
        validate=lambda _network: {},
    )
    clocks: list[Seconds] = []
    fit(
        training.network().to(device),
        task,
        recipe,
        epochs=settings.epochs,
        seed=0,
        checkpoint=training.checkpoint,
        fingerprint="",
        report=lambda *_: clocks.append((time.perf_counter(), time.process_time())),
    )
    write_seconds(training, [(clocks[-1][place] - clocks[-2][place]) / count for place in (0, 1)])


def reduce_gradients(num_values: int, result: Path) -> None:
    """Writes the median seconds of an all-reduce of `num_values` float32."""
    values = torch.zeros(num_values)
    walls = []
    cpus = []
    for _ in range(12):
        wall, cpu = time.perf_counter(), time.process_time()
        torch_distributed.all_reduce(values)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)

    if distributed.rank() == 0:
        # The first two warm up.
        result.write_text(json.dumps([statistics.median(walls[2:]), statistics.median(cpus[2:])]))


def _process(function: Callable[[], None], rank: int, num_ranks: int, store: Path | None) -> None:
    torch.set_num_threads(1)
    if store:
        torch_distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks
        )
    function()


def in_processes(functions: list[Callable[[], None]], store: Path | None) -> None:
    """Runs each function in its own process, all at once; as one process group if there is a
    `store` (a path of no file yet)."""
    processes = [
        FORKS.Process(target=_process, args=(function, rank, len(functions), store))
        for rank, function in enumerate(functions)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def peak_mb(faces: Path, window_faces: int, result: Path) -> None:
    """Writes this process's peak memory in MB after an epoch of reading, and the faces read per
    second."""
    split = FaceSplit.open(faces, "train")
    stream = split.of(
        {name: index for index, name in enumerate(sorted(split.people()))}, with_landmarks=False
    )
    started = time.perf_counter()
    encoded = stream._faces(range(len(stream.shards)), 0, len(stream))
    sizes = [64] * (len(stream) // 64)
    batches = drawn_batches(encoded, sizes, window_faces, np.random.default_rng(0))
    count = sum(len(batch) for batch in batches)
    rate = count / (time.perf_counter() - started)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result.write_text(json.dumps([peak, rate]))


def feed_seconds(training: Training, num_faces: int) -> float:
    """Processor seconds of reading, decoding and augmenting a face, on one core."""
    settings = training.settings
    generator = torch.Generator().manual_seed(0)
    augmentation = settings.augmentations[settings.augmentation]
    torch.set_num_threads(1)

    count = 0
    started = time.process_time()
    batches = training.faces.shuffled(
        num_faces, 1 << 16, generator, num_workers=0, rank=0, num_ranks=1
    )
    for crops, _ in batches:
        training_view(crops, augmentation, settings.normalise, generator)
        count += len(crops.view_BCHW)
    return (time.process_time() - started) / count


def measure(
    folder: Path, network: str, px: int, batch_size: int, num_faces: int, turns: int
) -> None:
    """Prints the tables of throughput, measured and by the model."""
    base = load_section(PARAMS, "pretrain", PretrainSettings)
    recipe = dataclasses.replace(base.recipes["modern"], batch_size=batch_size)
    settings = dataclasses.replace(
        base,
        network=NetworkSettings(name=network, options={"pooling": "hybrid"}),
        epochs=2,
        recipe="modern",
        recipes={"modern": recipe},
        augmentation="extended",
    )
    faces = write_random(folder / "faces", num_faces, px, 8)
    training = functools.partial(training_of, settings, faces)
    parameters = training(folder / "x.pt").network().parameters()
    num_parameters = sum(value.numel() for value in parameters)

    steps: dict[str, list[Seconds]] = {}
    for turn in range(turns):
        for name, share, number in (("1 limit", batch_size, 1), ("2 limit", batch_size // 2, 2)):
            jobs = [training(folder / f"{name}{turn}{rank}.pt") for rank in range(number)]
            in_processes([functools.partial(train_resident, job, share) for job in jobs], None)
            each = [read_seconds(job) for job in jobs]
            wall = max(wall for wall, _ in each)
            steps.setdefault(name, []).append((wall, statistics.mean(cpu for _, cpu in each)))
        for number in (1, 2):
            job = training(folder / f"fed{turn}{number}.pt")
            store = folder / f"store{turn}{number}"
            in_processes([functools.partial(train_fed, job)] * number, store)
            steps.setdefault(f"{number} fed", []).append(read_seconds(job))

    reduction = functools.partial(reduce_gradients, num_parameters, folder / "reduce")
    in_processes([reduction] * 2, folder / "store")
    reduced = json.loads((folder / "reduce").read_text())
    feed = feed_seconds(training(folder / "x.pt"), batch_size)

    print(
        f"{network} at {px} px, global batches of {batch_size}, {num_parameters:,} parameters, "
        f"one thread per process; feeding a face takes {1e3 * feed:.2f} ms of a core, an "
        f"all-reduce {1e3 * reduced[0]:.1f} ms\n"
    )
    print(
        "| processes | time | compute-bound limit, faces/s | measured | share of the limit | "
        "model | off by |"
    )
    print("|---|---|---|---|---|---|---|")
    for number in (1, 2):
        for place, clock in enumerate(("wall", "processor")):
            limit = statistics.median(step[place] for step in steps[f"{number} limit"])
            whole = statistics.median(step[place] for step in steps[f"{number} fed"])
            costs = Costs(
                compute_seconds=limit,
                feed_seconds=feed * batch_size / number,
                feed_cores=0,
                reduce_seconds=reduced[place] if number > 1 else 0.0,
            )
            model = step_seconds(costs)
            print(
                f"| {number} | {clock} | {batch_size / limit:.0f} | {batch_size / whole:.0f} | "
                f"{limit / whole:.2f} | {batch_size / model:.0f} | "
                f"{100 * (whole / model - 1):+.0f} % |"
            )


def measure_reading(folder: Path, px: int, window_faces: int) -> None:
    """Prints peak memory and rate of the stream alone, for growing data sets."""
    print(
        f"\n| faces | MB of crops | peak MB, window of {window_faces} | read, faces/s "
        f"|\n|---|---|---|---|"
    )
    for count in (2_000, 8_000, 32_000):
        faces = write_random(folder / f"reading-{count}", count, px, count // 1000)
        in_processes([functools.partial(peak_mb, faces, window_faces, folder / "peak")], None)
        peak, rate = json.loads((folder / "peak").read_text())
        size = sum(path.stat().st_size for path in faces.iterdir()) / 1e6
        print(f"| {count:,} | {size:.0f} | {peak:.0f} | {rate:,.0f} |", flush=True)


def measure_shuffling() -> None:
    """Prints the share of same-person pairs in batches from shards sorted by person, by window,
    measured and by the model."""
    num_people, photos, batch = 2_000, 90, 128
    print(f"\n{num_people * photos:,} faces, batches of {batch}\n")
    print(
        "| window | same-person pairs, 1 in | model, 1 in | people in a batch |\n|---|---|---|---|"
    )
    for window in (1_000, 4_000, 16_000, 64_000, num_people * photos):
        faces: Iterator[Any] = (person for person in range(num_people) for _ in range(photos))
        sizes = [batch] * (num_people * photos // batch)
        drawn = list(drawn_batches(faces, sizes, window, np.random.default_rng(0)))
        share = float(np.mean([same_person_pairs(people) for people in drawn]))
        model = pair_share(window, photos, num_people * photos, 1)
        people = float(np.mean([len(set(batch_)) for batch_ in drawn]))
        print(f"| {window:,} | {1 / share:,.0f} | {1 / model:,.0f} | {people:.1f} |")


# -------------------------------------------------------------------------------
# The plan
# -------------------------------------------------------------------------------

NUM_FACES, NUM_PEOPLE, EPOCHS, CROP_BYTES, SHARD_FACES = 5_000_000, 54_000, 60, 20_000, 4096
# ThinAgeNet, a face at 224 px (bench/README.md); training takes three times a forward pass
MACS = 3.86e9
ASSUMED = {
    # A tenth of an H100's peak: early VGG layers are memory-bound
    "operations per second and GPU, bfloat16": 1.0e14,
    "bytes/s between GPUs of a machine": 2.0e11,
    "bytes/s between machines, per GPU": 5.0e9,
    "bytes/s from storage, per GPU": 1.0e9,
    "feeding, seconds of a core per face at 224 px": 1.5e-3,
    "dollars per GPU-hour": 3.0,
}
GPUS_PER_MACHINE, FEED_CORES = 8, 12


def plan_row(num_gpus: int, share: int, window_faces: int) -> str:
    """One line of the plan: `num_gpus` GPUs, each with `share` faces of every batch."""
    operations, inside, between, storage, feed, price = ASSUMED.values()
    head = build("thin", {"pooling": "hybrid"}, NUM_PEOPLE)
    num_bytes = 4 * sum(value.numel() for value in head.parameters())
    link = inside if num_gpus <= GPUS_PER_MACHINE else between
    costs = Costs(
        compute_seconds=share * 3 * 2 * MACS / operations,
        feed_seconds=share * feed,
        feed_cores=FEED_CORES,
        reduce_seconds=reduce_seconds(num_bytes, num_gpus, link),
    )

    step = step_seconds(costs)
    # The window is filled before an epoch's first step.
    fill_seconds = min(window_faces, NUM_FACES / num_gpus) * CROP_BYTES / storage
    epoch_hours = (NUM_FACES / (num_gpus * share) * step + fill_seconds) / 3600
    hours = epoch_hours * EPOCHS
    # A shard at a border is read by both neighbours.
    read_bytes = (NUM_FACES + num_gpus * SHARD_FACES) * CROP_BYTES
    pairs = pair_share(window_faces, NUM_FACES / NUM_PEOPLE, NUM_FACES, num_gpus)

    return (
        f"| {num_gpus} | {num_gpus * share:,} | {1e3 * costs.compute_seconds:.0f} | "
        f"{1e3 * costs.feed_seconds / FEED_CORES:.0f} | {1e3 * costs.reduce_seconds:.1f} | "
        f"{1e3 * step:.0f} | "
        f"{num_gpus * share / step:,.0f} | {read_bytes / 1e9:.0f} | "
        f"{read_bytes / epoch_hours / 3.6e12:.2f} | "
        f"{window_faces * CROP_BYTES / 1e9:.1f} | {fill_seconds:.1f} | {1 / pairs:,.0f} | "
        f"{epoch_hours:.2f} | "
        f"{hours:.1f} | {hours * num_gpus * price:,.0f} |"
    )


def plan() -> None:
    """Prints the plan for 5 million faces of 54,000 people: ThinAgeNet, 224 px, 60 epochs."""
    print(
        f"\nThinAgeNet, 224 px, {NUM_FACES:,} faces of {NUM_PEOPLE:,} people, {EPOCHS} epochs. "
        f"Assumed, not measured:"
    )
    print(
        "; ".join(f"{name} {value:g}" for name, value in ASSUMED.items())
        + f"; feeding cores per GPU {FEED_CORES}."
    )
    print(f"An ideal shuffle has one same-person pair in {NUM_PEOPLE:,}.\n")
    columns = [
        "GPUs",
        "batch",
        "compute, ms",
        "feed, ms",
        "all-reduce, ms",
        "step, ms",
        "faces/s",
        "GB per epoch",
        "GB/s",
        "window, GB",
        "fill, s",
        "same-person pairs, 1 in",
        "hours per epoch",
        "hours",
        "dollars",
    ]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for num_gpus, share in ((1, 128), (8, 128), (64, 16), (64, 128)):
        print(plan_row(num_gpus, share, 1 << 18))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="tiny")
    parser.add_argument("--crop-px", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--faces", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--plan", action="store_true", help="only the plan, no measurement")
    arguments = parser.parse_args()

    FORKS.set_forkserver_preload(["stages.pretrain", "torch._dynamo", "torch.nn.parallel"])
    if not arguments.plan:
        with tempfile.TemporaryDirectory() as folder:
            measure(
                Path(folder),
                arguments.network,
                arguments.crop_px,
                arguments.batch_size,
                arguments.faces,
                arguments.turns,
            )
            measure_reading(Path(folder), arguments.crop_px, 1_000)
            measure_shuffling()
    plan()


if __name__ == "__main__":
    main()
