"""Values of the two drift measures (visage.evaluation.drift) for faces of the same kind, for other
faces, and for changed photos.

    python -m bench.drift --model models/export --faces data/target/faces [--others FOLDER ...]

The model predicts up to 2,000 training faces (the reference), all test faces, and the faces of
every other folder. Random samples of 200 test faces then show the variation by chance. `older`
samples test faces with weights that raise their mean label by about 4 years. `brighter` multiplies
the pixels by 1.3. The folders hold aligned faces, cropped as the model's config says.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from visage.data.face_table import FaceTable
from visage.evaluation.drift import Drift, Summary, drift
from visage.inference.faces import CropPredictor
from visage.inference.predict_table import check_preprocessing, faces_of
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.weights import load_model

REFERENCE_FACES = 2000
DRAWN_FACES = 200
NUM_DRAWS = 200
BATCH = 256
OLDER_YEARS = 4.0
BRIGHTER = 1.3
# Values (N,), features (N,C)
Observed = tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]


def observed_of(
    folder: Path, table: FaceTable, rows: npt.NDArray[np.int64], gain: float = 1.0
) -> Observed:
    """The model's values and features of some faces, their pixels times `gain`."""
    batches: list[Observed] = []
    network, config = load_model(folder)
    predictor = CropPredictor(
        network,
        config,
        observe=lambda values_N, features_NC: batches.append((values_N, features_NC)),
    )

    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        faces = faces_of(table, some, network.needs_landmarks)
        crops_BCHW = (faces.view_BCHW.float() * gain).clamp(0, 255).to(torch.uint8)
        predictor.predict_crops(crops_BCHW, faces.landmarks_B52)

    values, features = zip(*batches, strict=True)
    return np.concatenate(values), np.concatenate(features)


def summary(
    config: ModelConfig, observed: Observed, rows: npt.NDArray[np.int64] | slice = slice(None)
) -> Summary:
    values_N, features_NC = observed
    summed = Summary.of(config, window_faces=len(values_N), block_faces=len(values_N))
    summed.add(values_N[rows], features_NC[rows])
    return summed


def reference_rows(table: FaceTable) -> npt.NDArray[np.int64]:
    """At most REFERENCE_FACES of the faces, evenly spread."""
    num_faces = len(table)
    places = np.linspace(0, num_faces - 1, min(num_faces, REFERENCE_FACES))
    return np.unique(places.astype(int))


def older(label_N: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """As many rows of test faces, sampled so that older ones are more likely."""
    weight_N = np.exp(OLDER_YEARS / label_N.var() * label_N)
    return rng.choice(len(label_N), len(label_N), p=weight_N / weight_N.sum())


def measured(model: Path, faces: Path, others: list[Path]) -> Iterator[tuple[str, Drift]]:
    """Each kind of served faces and its drift; the draws come last, as their 99th percentiles."""
    rng = np.random.default_rng(0)
    config = ModelConfig.read(model / CONFIG_FILE)
    train = FaceTable.open(faces, ["train"])
    test = FaceTable.open(faces, ["test"])
    check_preprocessing(config, test, faces)
    reference = summary(config, observed_of(model, train, reference_rows(train)))

    every = np.arange(len(test))
    observed = observed_of(model, test, every)
    yield "test faces", drift(reference, summary(config, observed))

    older_rows = older(test.label, rng)
    yield f"older by {OLDER_YEARS:g}", drift(reference, summary(config, observed, older_rows))

    higher = (observed[0] + 5, observed[1])
    yield "predictions 5 too high", drift(reference, summary(config, higher))

    brighter = observed_of(model, test, every, BRIGHTER)
    yield f"pixels x {BRIGHTER}", drift(reference, summary(config, brighter))

    for folder in others:
        table = FaceTable.open(folder, ["train", "val", "test"])
        check_preprocessing(config, table, folder)
        other = observed_of(model, table, reference_rows(table))
        yield str(folder), drift(reference, summary(config, other))

    for number in range(NUM_DRAWS):
        rows = rng.choice(len(every), min(DRAWN_FACES, len(every)), replace=False)
        yield f"draw {number}", drift(reference, summary(config, observed, rows))


def line(kind: str, num_faces: int, psi: float, distance: float) -> str:
    return f"{kind:40} {num_faces:6} faces  PSI {psi:7.3f}  features {distance:7.3f}"


def main() -> None:
    """Prints a line per kind of faces, and the 99th percentiles of the random samples."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.drift", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--model", type=Path, default=Path("models/export"))
    parser.add_argument(
        "--faces",
        type=Path,
        default=Path("data/target/faces"),
        help="its aligned faces, all splits",
    )
    parser.add_argument(
        "--others", type=Path, nargs="*", default=[], help="other aligned faces, cropped alike"
    )
    arguments = parser.parse_args()

    if not (arguments.model / "config.json").is_file():
        raise SystemExit(
            f"bench.drift: no model in {arguments.model}; run make demo, or give --model and "
            f"--faces"
        )

    draws: list[Any] = []
    for kind, found in measured(arguments.model, arguments.faces, arguments.others):
        if kind.startswith("draw "):
            draws.append((found.value_psi, found.feature_distance))
        else:
            print(line(kind, found.num_faces, found.value_psi, found.feature_distance))

    psi, distance = np.quantile(draws, 0.99, axis=0)
    print(line(f"{DRAWN_FACES} test faces, 99th of 100", DRAWN_FACES, psi, distance))


if __name__ == "__main__":
    main()
