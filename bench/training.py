"""Cost of the input pipeline in training, and the gain of precision and memory format.

    python -m bench.training        # TinyAgeNet, 96 px, batches of 64, random crops: 5 minutes
    python -m bench.training --faces data/target/faces --network thin

First table: within one epoch, the real loop (`visage.training.loop`) alternates between blocks of
steps on faces (decoded, cached, prefetched, augmented) and blocks of steps on one fixed batch. A
step is the time from one request for a batch to the next. The goal is at most 1.1 times the fixed
batch. Second table: the same loop on the fixed batch alone, alternating between float32 and
bfloat16, with and without channels_last. Figures are medians of steps; the sides take turns, so
that other load affects both. CPU time (all threads) is reported beside wall time, because other
load hardly changes it.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from stages.finetune import FinetuneSettings
from stages.settings import load_section
from visage.data.augment import AugmentationSettings, training_view
from visage.data.face_table import FaceTable, prefetched, shuffled_batches
from visage.data.preprocess import PAPER_NORMALISE, evaluation_faces
from visage.data.schemas import FACE_SCHEMA, METADATA_KEY
from visage.device import available_device
from visage.labels import LabelGrid
from visage.methods import METHODS, DLDLv2Settings
from visage.networks import FaceBatch, build, initialise
from visage.training.loop import Batch, Task, fit
from visage.training.optim import RecipeSettings

PARAMS = Path(__file__).resolve().parent.parent / "params.yaml"  # the augmentation presets
BLOCK = 12  # steps of a turn
SETTLE = 4  # first steps of a turn, not counted
RECIPE = RecipeSettings(
    optimiser="adamw",
    momentum=0.0,
    nesterov=False,
    learning_rate=1e-3,
    weight_decay=0.05,
    batch_size=64,
    schedule="cosine",
    decay_fraction=1.0,
    decay_factor=0.01,
    warmup_fraction=0.1,
    ema_decay=0.998,
    precision="auto",
    channels_last=True,
)
GRID = LabelGrid(minimum=0.0, step=1.0, maximum=100.0)
LOSS = DLDLv2Settings(lambda_=1.0, kl_reduction="sum", min_sigma=0.5)

Seconds = tuple[float, float]  # wall, CPU over all threads


def random_faces(folder: Path, count: int, crop_px: int) -> Path:
    """A face table of random crops with about as much detail as a face: 5 kB each at 96 px."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        coarse = Image.fromarray(
            rng.integers(0, 256, (crop_px // 6, crop_px // 6, 3), dtype=np.uint8)
        )
        buffer = io.BytesIO()
        coarse.resize((crop_px, crop_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        row = dict.fromkeys(FACE_SCHEMA.names) | {
            "photo_id": f"{index:06d}.jpg",
            "sha256": f"{index:064x}",
        }
        row |= {
            "jpeg": buffer.getvalue(),
            "found": "mtcnn",
            "label": float(rng.uniform(0, 100)),
            "split": "train",
        }
        rows.append(row)

    shard_metadata = {METADATA_KEY: json.dumps({"alignment": {"crop_px": crop_px}, "detector": {}})}
    table = pa.Table.from_pylist(rows, FACE_SCHEMA.with_metadata(shard_metadata))
    pq.write_table(table, folder / "part-00000.parquet")
    return folder


@dataclasses.dataclass
class Clock:
    """Seconds of every step by the name of its feed, from one request for a batch to the next."""

    steps: dict[str, list[Seconds]] = dataclasses.field(default_factory=dict)

    def taking_turns(self, feeds: dict[str, Iterator[Batch]], num_turns: int) -> Iterator[Batch]:
        """Batches of each feed in blocks, timed."""
        for _ in range(num_turns):
            for name, feed in feeds.items():
                for place in range(BLOCK):
                    wall, cpu = time.perf_counter(), time.process_time()
                    yield next(feed)
                    if place >= SETTLE:
                        step = (time.perf_counter() - wall, time.process_time() - cpu)
                        self.steps.setdefault(name, []).append(step)

    def median(self, name: str) -> Seconds:
        """Medians of wall and of CPU time, each on its own."""
        return (
            statistics.median(wall for wall, _ in self.steps[name]),
            statistics.median(cpu for _, cpu in self.steps[name]),
        )


def loss(logits_BK: Tensor, label_B: Tensor, sigma_B: Tensor) -> Tensor:
    return METHODS["dldl_v2"].loss(logits_BK, label_B, sigma_B, GRID, LOSS)


def train(
    network: str,
    recipe: RecipeSettings,
    clock: Clock,
    feeds: dict[str, Iterator[Batch]],
    turns: int,
) -> None:
    """One epoch of the real loop on feeds that take turns."""
    model = build(network, {"pooling": "hybrid"}, GRID.num_labels)
    initialise(model, torch.Generator().manual_seed(0))
    task = Task(
        batches=lambda _generator: clock.taking_turns(feeds, turns),
        num_batches=turns * BLOCK * len(feeds),
        loss=loss,
        auxiliary_weight=1.0,
        validate=lambda _network: {},
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model.to(available_device()),
            task,
            recipe,
            epochs=1,
            seed=0,
            checkpoint=Path(folder) / "last.pt",
            fingerprint="",
            report=lambda _step, _values: None,
        )


def fixed_batch(table: FaceTable, batch_size: int) -> Iterator[Batch]:
    """The same prepared batch for ever."""
    device, places = available_device(), np.arange(batch_size)
    crops = FaceBatch(table.decode(places).to(device), None)
    faces = evaluation_faces(crops, PAPER_NORMALISE)
    label_B = torch.tensor(table.label[places], dtype=torch.float32, device=device)
    while True:
        yield Batch(faces, (label_B, torch.full_like(label_B, 2.0)))


def fed(table: FaceTable, batch_size: int, augmentation: AugmentationSettings) -> Iterator[Batch]:
    """Batches as the stages make them, epoch after epoch, with one prefetching thread."""
    device, generator = available_device(), torch.Generator().manual_seed(0)
    label_N = torch.tensor(table.label, dtype=torch.float32, device=device)
    while True:
        order = shuffled_batches(len(table), batch_size, generator)
        for indices, crops_BCHW in prefetched(table, order, 1):
            crops = FaceBatch(crops_BCHW.to(device), None)
            faces = training_view(crops, augmentation, PAPER_NORMALISE, generator)
            sigma_B = torch.full((len(indices),), 2.0, device=device)
            yield Batch(faces, (label_N[indices], sigma_B))


def line(name: str, clock: Clock, feed: str, against: str) -> str:
    """One row of a table: milliseconds of both, and the ratios of wall and of CPU time."""
    wall, cpu = clock.median(feed)
    wall_0, cpu_0 = clock.median(against)
    times = f"{1e3 * wall_0:.0f} | {1e3 * wall:.0f} | {wall / wall_0:.3f} | {cpu / cpu_0:.3f}"
    return f"| {name} | {times} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--faces", type=Path, help="a folder of face shards (default: random crops)"
    )
    parser.add_argument("--network", default="tiny")
    parser.add_argument("--crop-px", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=8)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        faces = arguments.faces or random_faces(
            Path(folder), 16 * arguments.batch_size, arguments.crop_px
        )
        tables = {
            "cached": FaceTable.open(faces, ["train"], 1 << 14),
            "not cached": FaceTable.open(faces, ["train"]),
        }
    px = tables["cached"].alignment["crop_px"]
    tables["cached"].decode(np.arange(len(tables["cached"])))
    presets = load_section(PARAMS, "finetune", FinetuneSettings).augmentations

    print(
        f"{arguments.network} at {px} px, batches of {arguments.batch_size}, "
        f"{torch.get_num_threads()} threads, {available_device()}\n"
    )
    print("| faces | fixed batch, ms | with data, ms | wall, ratio | CPU, ratio |")
    print("|---|---|---|---|---|")
    for cache, table in tables.items():
        for preset, augmentation in presets.items():
            clock = Clock()
            feeds = {
                "fixed": fixed_batch(table, arguments.batch_size),
                "fed": fed(table, arguments.batch_size, augmentation),
            }
            train(arguments.network, RECIPE, clock, feeds, arguments.turns)
            print(line(f"{cache}, {preset}", clock, "fed", "fixed"), flush=True)

    print("\n| precision | float32, ms | ms | wall, ratio | CPU, ratio |\n|---|---|---|---|---|")
    clocks = {
        (precision, last): Clock()
        for precision in ("float32", "bfloat16")
        for last in (False, True)
    }
    for _ in range(max(1, arguments.turns // 4)):
        for (precision, last), clock in clocks.items():
            recipe = dataclasses.replace(RECIPE, precision=precision, channels_last=last)  # type: ignore[arg-type]
            feed = {f"{precision} {last}": fixed_batch(tables["cached"], arguments.batch_size)}
            train(arguments.network, recipe, clock, feed, 1)

    together = Clock()
    for clock in clocks.values():
        together.steps |= clock.steps
    for precision, last in clocks:
        name = f"{precision}{', channels_last' if last else ''}"
        print(line(name, together, f"{precision} {last}", "float32 False"))


if __name__ == "__main__":
    main()
