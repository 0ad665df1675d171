"""A folder of unlabelled photos becomes a labelled table (DHAA's recipe for photos from the web,
section 3).

    python -m flows.label.flow PHOTOS [--model FOLDER]... [--output FOLDER]
        (or: make label PHOTOS=folder)
    python -m flows.label.flow PHOTOS --finish review.csv --unreviewed take|leave

The first finds near duplicates (visage/dedup/near_duplicates.py) and keeps the largest of each,
asks every model about the face that alignment would take, and writes into the output folder:
review.csv (the widest spread between the models first), sheet_001.html ... with the faces,
left_out.csv (every photo without a label, with its reason). A person fills the column `corrected`;
the second makes labels.csv of that, which source `table` reads. A stopped run goes on where it was.
A photo takes some 5 ms for its hash and 50 to 300 ms a model, nearly all of it finding faces.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flows.label.database import CHANGED, UNSEEN, LabelDatabase, Predicted
from flows.label.hashes import hash_all
from flows.label.review import carry_edits, finish, write_pages, write_review, write_rows
from stages.ingest.archives import odd_name, printable
from stages.ingest.records import REPOSITORY, photos_under
from stages.settings import read_json
from stages.sqlite_database import PAGE_ROWS
from visage.atomic import atomic_write
from visage.cli import default_model_folder
from visage.dedup.near_duplicates import kept_of_groups, near_groups
from visage.inference.fusion import combined
from visage.inference.photos import PhotoResult, Predictor
from visage.model_config import CONFIG_FILE
from visage.parallel import batched
from visage.weights import sha256_of

CHUNK_PHOTOS = 64


def label(photos: Path, models: Sequence[Path], output: Path, num_shown: int) -> dict[str, int]:
    """Fills `output` from the photos; how many were found, kept, labelled and left out. ValueError
    names the remedy."""
    _check_photos(photos)
    loaded = [Predictor.load(model) for model in models]
    predictors = dict(
        zip((sha256_of(model / CONFIG_FILE) for model in models), loaded, strict=True)
    )
    labels = _common_labels(loaded)
    with LabelDatabase(output / "work.sqlite") as database:
        database.belong_to(photos)
        num_photos = _find(photos, database)
        num_new = database.count(CHANGED)
        database.add_hashed(
            tqdm(hash_all(photos, database.changed(), num_new), desc="hash", total=num_new)
        )
        num_kept = _group(database)
        for key, predictor in predictors.items():
            _predict(photos, key, predictor, database)
        names = json.dumps(list(predictors))
        _combine(database, names)
        num_lost = carry_edits(database, output / "review.csv")
        num_labelled = write_review(database, output / "review.csv")
        write_pages(database, photos, output, labels["unit"], num_shown)
        num_left_out = write_rows(
            output / "left_out.csv", ("photo", "reason"), database.left_out(names)
        )
    with atomic_write(output / "label.json") as part:
        part.write_text(json.dumps(labels, indent=1), encoding="utf-8")
    counts = {
        "photos": num_photos,
        "kept": num_kept,
        "labelled": num_labelled,
        "left out": num_left_out,
    }
    return counts | {"corrections not carried": num_lost}


def _check_photos(photos: Path) -> None:
    """Before anything is written: a mistyped folder leaves nothing behind."""
    if not photos.is_dir():
        raise ValueError(f"{photos}: no such folder of photos")
    if next(photos_under(photos), None) is None:
        raise ValueError(f"{photos}: holds no photo")


def _common_labels(predictors: Sequence[Predictor]) -> dict[str, Any]:
    """The quantity, unit and range of labels that all models share; ValueError where they
    differ."""
    quantities = [{"quantity": p.config.quantity, "unit": p.config.unit} for p in predictors]
    if any(quantity != quantities[0] for quantity in quantities):
        raise ValueError(
            f"the models answer about {quantities}; give models of one quantity and unit"
        )
    if len({p.config.weights.sha256 for p in predictors}) < len(predictors):
        raise ValueError("a model is named twice; an ensemble is of different ones")
    grids = [predictor.config.grid for predictor in predictors]
    low, high = min(grid.minimum for grid in grids), max(grid.maximum for grid in grids)
    return {
        **quantities[0],
        "minimum": low,
        "maximum": high,
        "models": [p.config.name for p in predictors],
    }


def _find(photos: Path, database: LabelDatabase) -> int:
    """Notes the photos that are there; names that no table can hold are listed."""
    for batch in batched(photos_under(photos), PAGE_ROWS):
        odd = [(printable(name), reason) for name in batch if (reason := odd_name(name))]
        database.add("listed", odd)
        found = [(name, (photos / name).stat()) for name in batch if not odd_name(name)]
        database.add(
            "present", ((name, status.st_size, status.st_mtime_ns) for name, status in found)
        )
    num_photos = database.count("SELECT * FROM present")
    if not num_photos:
        raise ValueError(f"{photos}: holds no photo whose name a table can hold; rename them")
    return num_photos


def _group(database: LabelDatabase) -> int:
    """Notes each photo's group of near duplicates, and which of them is kept; how many are."""
    columns = np.dtype([("hash", np.int64), ("num_pixels", np.int64)])
    photos_N = np.fromiter((row[1:] for row in database.readable()), columns)
    groups_N = near_groups(photos_N["hash"].copy().view(np.uint64))
    is_kept_N = kept_of_groups(groups_N, photos_N["num_pixels"])
    names = (photo_id for photo_id, *_ in database.readable())
    database.add("grouped", zip(names, groups_N.tolist(), is_kept_N.tolist(), strict=True))
    return int(is_kept_N.sum())


def _predict(photos: Path, model: str, predictor: Predictor, database: LabelDatabase) -> None:
    """Asks one model about the kept photos that it has not seen; `model` is its config's digest,
    for the config knows all that an answer depends on (weights, alignment, decoding, calibration).
    """
    with tqdm(
        total=database.count(UNSEEN, {"model": model}),
        desc=f"ask {predictor.config.name}",
        unit=" photos",
    ) as bar:
        for batch in batched(database.unseen(model), CHUNK_PHOTOS):
            results = predictor.predict_photos(photos / photo_id for (photo_id,) in batch)
            pairs = zip(batch, results, strict=True)
            database.add(
                "predicted", (_answer(photo_id, model, result) for (photo_id,), result in pairs)
            )
            bar.update(len(batch))


def _answer(photo_id: str, model: str, result: PhotoResult) -> Predicted:
    face = next((face for face in result.faces if face.chosen), None)
    if face is None:
        return Predicted(photo_id, model, None, None, None, result.reason)
    return Predicted(
        photo_id, model, face.value, face.std, json.dumps([round(x, 1) for x in face.box]), None
    )


def _combine(database: LabelDatabase, models: str) -> None:
    """Each photo's answers become its coarse label."""
    for batch in batched(database.answers(models), PAGE_ROWS):
        values_MN, stds_MN = (
            np.array([json.loads(row[place]) for row in batch]).T for place in (1, 2)
        )
        columns = [column.tolist() for column in combined(values_MN, stds_MN)]
        database.add(
            "coarse",
            zip((row[0] for row in batch), *columns, (row[3] for row in batch), strict=True),
        )


def main() -> None:
    """The command line; what the user can correct ends it with one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.label.flow", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("photos", type=Path, help="folder with photos, at any depth")
    parser.add_argument(
        "--model",
        type=Path,
        action="append",
        help="a model's folder, once for each of the ensemble",
    )
    parser.add_argument(
        "--output", type=Path, help="default: data/label/ and the name of the folder with photos"
    )
    parser.add_argument(
        "--show", type=int, default=1000, help="how many faces the pages show, the worst first"
    )
    parser.add_argument(
        "--finish", type=Path, metavar="REVIEW", help="make labels.csv of a corrected review.csv"
    )
    parser.add_argument(
        "--unreviewed", choices=["take", "leave"], help="rows without a correction, with --finish"
    )
    arguments = parser.parse_args()
    output = arguments.output or REPOSITORY / "data" / "label" / arguments.photos.resolve().name
    try:
        if arguments.finish is None:
            models = arguments.model or [default_model_folder(REPOSITORY)]
            counts = label(arguments.photos, models, output, arguments.show)
            print("  ".join(f"{name} {count}" for name, count in counts.items()) + f"  -> {output}")
            return
        if arguments.unreviewed is None:
            raise ValueError(
                "--finish wants --unreviewed take or leave: what becomes of rows without a "
                "correction"
            )
        if not (output / "label.json").is_file():
            raise ValueError(
                f"{output}: no photos were labelled there; run flows.label.flow without --finish "
                f"first"
            )
        labels = read_json(output / "label.json")
        table, skipped = output / "labels.csv", output / "labels_skipped.csv"
        bounds = (labels["minimum"], labels["maximum"])
        done = finish(arguments.finish, table, skipped, bounds, arguments.unreviewed)
        print(
            "  ".join(f"{name} {count}" for name, count in done._asdict().items()) + f"  -> {table}"
        )
    except ValueError as error:
        print(f"flows.label.flow: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
