"""Speed of each network in each form (runtime and precision), against VGG-16 in plain torch
(DLDL-v2's Table 2), and the error of each form.

    python -m bench.speed       # VGG-16, Thin and Tiny at 224 px on one thread: 10 minutes, 4 GB
    python -m bench.speed --px 96 --threads 2 --networks vgg16 thin tiny vgg-0.125
    python -m bench.speed --model models/export --faces data/target/faces    # also a model's error

Time does not depend on the weights, so they are random. Each form takes uint8 crops and gives
values; normalisation, softmax and decoding are measured in every form. All forms of all networks
take turns in one process, so that other load affects them alike. Figures are medians over the
turns. Processor time is reported beside wall time; with one thread, other load hardly changes it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from visage.data.face_table import FaceTable, evenly_spread, in_order
from visage.detection.align import template
from visage.export.int8 import write_int8
from visage.export.onnx_file import write_onnx
from visage.inference.onnx_engine import CROPS, INT8_FILE, LANDMARKS, ONNX_FILE, VALUE
from visage.inference.predict_table import (
    DECODING_THREADS,
    check_preprocessing,
    faces_of,
    landmarks_of,
)
from visage.inference.torch_engine import Inference
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.networks import FaceBatch, Network, any_options, build, initialise
from visage.networks.operations import count_macs
from visage.weights import load_model

RELEASED = Path(__file__).resolve().parent.parent / "visage" / "released"
BATCH, SINGLES = 32, 4  # faces of a batch, as in Table 2; single faces in a row
RANGE_FACES = 256  # training faces that measure int8's ranges, as in params.yaml

Values = npt.NDArray[np.float32]
Run = Callable[[FaceBatch], Values]  # uint8 crops (B,3,H,W) and landmarks -> values (B,)
Key = tuple[str, str]  # network, form
Seconds = tuple[float, float]  # wall, processor over all threads


def in_torch(
    network: Network, config: ModelConfig, layout: torch.memory_format, *, bfloat16: bool
) -> Run:
    """A network with weights in the memory format `layout`, in torch; autocast rounds the head,
    too."""
    inference = Inference(network, config, torch.float32).eval()

    @torch.inference_mode()
    def run(faces: FaceBatch) -> Values:
        crops_BCHW = faces.view_BCHW.contiguous(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            value_B: Tensor = inference(crops_BCHW, faces.landmarks_B52)[1]
        return value_B.float().numpy()

    return run


def in_onnx(path: Path) -> Run:
    """An ONNX file in ONNX Runtime, with as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    names = [each.name for each in session.get_inputs()]

    def run(faces: FaceBatch) -> Values:
        inputs = {
            name: values.contiguous().numpy()
            for name, values in zip((CROPS, LANDMARKS), faces, strict=True)
            if name in names and values is not None
        }
        value_B: Values = session.run([VALUE], inputs)[0]
        return value_B

    return run


def forms(
    network: Network, config: ModelConfig, range_batches: Iterable[FaceBatch]
) -> dict[str, Run]:
    """A network in every form; int8 measures its ranges on `range_batches`."""
    last = copy.deepcopy(network)
    last.to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        exact, int8 = Path(folder) / ONNX_FILE, Path(folder) / INT8_FILE
        write_onnx(network, config, exact)
        write_int8(network, config, range_batches, int8)
        return {
            "torch": in_torch(network, config, torch.contiguous_format, bfloat16=False),
            "torch, channels_last": in_torch(last, config, torch.channels_last, bfloat16=False),
            "torch, bfloat16, channels_last": in_torch(
                last, config, torch.channels_last, bfloat16=True
            ),
            "ONNX float32": in_onnx(exact),
            "ONNX int8": in_onnx(int8),
        }


def random_faces(count: int, px: int) -> FaceBatch:
    """Smooth random crops, uint8 (count,3,px,px), the landmarks at a template's places."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    crops_BCHW = functional.interpolate(coarse, size=px, mode="bilinear").to(torch.uint8)
    template_52 = torch.from_numpy(template("whole_face", px, 1.0)).float()
    return FaceBatch(crops_BCHW, template_52.expand(count, -1, -1))


def random_network(name: str, px: int) -> tuple[Network, ModelConfig]:
    """A network with random weights and any of its options, and a released model's config with this
    network and crop size in it."""
    config = ModelConfig.read(
        RELEASED / (RELEASED / "default.txt").read_text(encoding="utf-8").strip() / CONFIG_FILE
    )
    options = any_options(name)
    network = build(name, options, config.network.num_outputs)
    initialise(network, torch.Generator().manual_seed(0))
    shape = dataclasses.replace(config.network, name=name, options=options)
    return network.eval(), dataclasses.replace(
        config, network=shape, alignment=dataclasses.replace(config.alignment, crop_px=px)
    )


def timed(run: Run, faces: FaceBatch) -> Seconds:
    wall, processor = time.perf_counter(), time.process_time()
    run(faces)
    return time.perf_counter() - wall, time.process_time() - processor


def take_turns(runs: dict[Key, Run], faces: FaceBatch, repeats: int) -> dict[Key, list[Seconds]]:
    """Every form's seconds on the same crops, in turn; the first turn warms up and does not
    count."""
    seconds: dict[Key, list[Seconds]] = {key: [] for key in runs}
    for _ in tqdm(range(repeats + 1), f"{len(faces.view_BCHW)} faces", unit="turn"):
        for key, run in runs.items():
            seconds[key].append(timed(run, faces))
    return {key: turns[1:] for key, turns in seconds.items()}


def medians(turns: list[Seconds]) -> Seconds:
    """Medians of wall and of processor time, each on its own."""
    wall = statistics.median(wall for wall, _ in turns)
    processor = statistics.median(processor for _, processor in turns)
    return wall, processor


def print_times(names: list[str], px: int, repeats: int) -> None:
    """Prints parameters and multiply-accumulates, then the times of every form, with ratios to the
    first network in torch."""
    runs: dict[Key, Run] = {}
    print(f"| network | parameters | multiply-accumulates at {px} px |\n|---|---|---|")
    for name in names:
        network, config = random_network(name, px)
        num_parameters = sum(value.numel() for value in network.parameters())
        print(
            f"| {name} | {num_parameters:,} | {count_macs(network, px) / 1e9:.3f} G |", flush=True
        )
        runs |= {
            (name, form): run
            for form, run in forms(network, config, [random_faces(BATCH, px)]).items()
        }
    batch = take_turns(runs, random_faces(BATCH, px), repeats)
    single = take_turns(runs, random_faces(1, px), SINGLES * repeats)
    print(
        f"\nTimes on the clock; ratios: {names[0]} in torch / this, on the clock (and of "
        f"processor)\n"
    )
    print(
        f"| network | form | {BATCH} faces, ms | ratio | one face, ms | ratio "
        f"|\n|---|---|---|---|---|---|"
    )
    for key in runs:
        cells = [cell(turns[key], turns[names[0], "torch"]) for turns in (batch, single)]
        print(f"| {' | '.join([*key, *cells])} |")


def cell(turns: list[Seconds], reference: list[Seconds]) -> str:
    """Milliseconds, and how many times as long the reference takes."""
    (wall, processor), (wall_0, processor_0) = medians(turns), medians(reference)
    return f"{1e3 * wall:.1f} | {wall_0 / wall:.1f} ({processor_0 / processor:.1f})"


def print_errors(folder: Path, faces: Path) -> None:
    """Prints the mean absolute error of every form of a trained model on its test faces; the ranges
    of int8 are from its training faces."""
    network, config = load_model(folder)
    train = FaceTable.open(faces, ["train"])
    test = FaceTable.open(faces, ["test"])
    if not (len(train) and len(test)):
        raise ValueError(
            f"{faces}: {len(train)} faces of split train, {len(test)} of test; both are needed"
        )
    check_preprocessing(config, train, faces)

    spread = evenly_spread(len(train), RANGE_FACES)
    runs = forms(
        network,
        config,
        (
            faces_of(train, places, network.needs_landmarks)
            for places in np.array_split(spread, -(-len(spread) // BATCH))
        ),
    )
    values: dict[str, list[Values]] = {form: [] for form in runs}
    for rows, crops_BCHW in in_order(test, BATCH, DECODING_THREADS, "test faces"):
        landmarks_B52 = landmarks_of(test, rows, network.needs_landmarks)
        for form, run in runs.items():
            values[form].append(run(FaceBatch(crops_BCHW, landmarks_B52)))
    print(f"\n{config.name}, {len(test)} test faces, no flip, {config.unit}\n")
    print("| form | MAE | differs from torch on average | at most |\n|---|---|---|---|")
    value_N = {form: np.concatenate(parts) for form, parts in values.items()}
    for form, own_N in value_N.items():
        difference_N = np.abs(own_N - value_N["torch"])
        mae = np.abs(own_N - test.label).mean()
        print(f"| {form} | {mae:.3f} | {difference_N.mean():.4f} | {difference_N.max():.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["vgg16", "thin", "tiny"],
        help="the first is the reference",
    )
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", type=Path, help="a trained model's folder; needs --faces")
    parser.add_argument(
        "--faces", type=Path, help="the folder of face shards that the model was evaluated on"
    )
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.faces is None):
        parser.error(
            "--model and --faces go together: a model, and the aligned faces to measure its error "
            "on"
        )

    torch.set_num_threads(arguments.threads)
    print(
        f"{arguments.px} px, {arguments.threads} threads, torch {torch.__version__}, "
        f"ONNX Runtime {onnxruntime.__version__}\n"
    )
    print_times(arguments.networks, arguments.px, arguments.repeats)
    if arguments.model is not None:
        print_errors(arguments.model, arguments.faces)


if __name__ == "__main__":
    main()
