"""A folder of unlabelled photos becomes a labelled table (DHAA's recipe for photos from the web,
section 3).

    visage label PHOTOS [--model FOLDER]... [--output FOLDER]      (or: make label PHOTOS=folder)
    visage label PHOTOS --finish review.csv --unreviewed take|leave

The first command finds near duplicates (visage/dedup/near_duplicates.py) and keeps the largest of
each group. It predicts, with every model, the label of the face that alignment would take. It
writes into the output folder: review.csv (the widest spread between the models first),
sheet_001.html ... with the faces, left_out.csv (every photo without a label, with its reason).

A person fills the column `corrected`. The second command makes labels.csv of that, which source
`table` reads. A stopped run resumes where it stopped. A photo takes some 5 ms for its hash and 50
to 300 ms for each model, nearly all of it for finding faces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from flows.label.database import CHANGED, UNSEEN, LabelDatabase, Predicted
from flows.label.hashes import hash_all
from flows.label.review import carry_edits, finish, write_pages, write_review, write_rows
from stages.ingest.archives import odd_name, printable
from stages.ingest.records import REPOSITORY
from stages.settings import read_json
from stages.sqlite_database import PAGE_ROWS
from visage.atomic import atomic_write
from visage.dedup.near_duplicates import kept_of_groups, near_groups
from visage.inference.fusion import combined
from visage.inference.loading import load, model_folder
from visage.inference.photos import Model
from visage.inference.results import PhotoPrediction
from visage.model_config import CONFIG_FILE, find_config
from visage.parallel import batched
from visage.photo_files import photos_under
from visage.weights import sha256_of

CHUNK_PHOTOS = 64
LABELS = "labels.csv"


def label(photos: Path, models: Sequence[Path], output: Path, num_shown: int) -> dict[str, int]:
    """Fills `output` from the photos; returns how many were found, kept, labelled and left out.

    Errors: ValueError, which names the remedy.
    """
    _check_photos(photos)
    loaded = [load(model) for model in models]
    digests = [sha256_of(model / CONFIG_FILE) for model in models]
    predictors = dict(zip(digests, loaded, strict=True))
    labels = _common_labels(loaded)

    with LabelDatabase(output / "work.sqlite") as database:
        database.check_folder(photos)
        num_photos = _find(photos, database)
        num_new = database.count(CHANGED)
        hashed = hash_all(photos, database.changed(), num_new)
        database.add_hashed(tqdm(hashed, desc="hash", total=num_new))
        num_kept = _group(database)

        for digest, predictor in predictors.items():
            _predict(photos, digest, predictor, database)
        models_json = json.dumps(list(predictors))
        _combine(database, models_json)

        # The edits of the earlier review.csv are read before the file is written again.
        review = output / "review.csv"
        num_lost = carry_edits(database, review)
        num_labelled = write_review(database, review)
        write_pages(database, photos, output, labels["unit"], num_shown)
        left_out = database.left_out(models_json)
        num_left_out = write_rows(output / "left_out.csv", ("photo", "reason"), left_out)

    with atomic_write(output / "label.json") as part:
        part.write_text(json.dumps(labels, indent=1), encoding="utf-8")

    return {
        "photos": num_photos,
        "kept": num_kept,
        "labelled": num_labelled,
        "left out": num_left_out,
        "corrections not carried": num_lost,
    }


def default_model() -> Path:
    """The model that labels when none is named: the pipeline's, else the default released one."""
    exported = REPOSITORY / "models" / "export"
    return exported if find_config(exported) is not None else model_folder(None)


def finish_labels(
    review: Path, output: Path, unreviewed: Literal["take", "leave"]
) -> dict[str, int]:
    """Makes labels.csv in `output` of a corrected review.csv; returns how many rows were used and
    left.

    `unreviewed`: `take` or `leave` rows without a correction. Errors: ValueError, which names the
    remedy.
    """
    if not (output / "label.json").is_file():
        raise ValueError(
            f"{output}: no photos were labelled there; run visage label without --finish first"
        )

    labels = read_json(output / "label.json")
    done = finish(
        review,
        output / LABELS,
        output / "labels_skipped.csv",
        (labels["minimum"], labels["maximum"]),
        unreviewed,
    )
    return done._asdict()


def _check_photos(photos: Path) -> None:
    """Checks the folder before anything is written: a mistyped one leaves no files behind."""
    if not photos.is_dir():
        raise ValueError(f"{photos}: no such folder of photos")
    if next(photos_under(photos), None) is None:
        raise ValueError(f"{photos}: holds no photo")


def _common_labels(predictors: Sequence[Model]) -> dict[str, Any]:
    """The quantity and unit that all models share, and the range of their labels; ValueError if the
    models do not fit together."""
    configs = [predictor.config for predictor in predictors]
    quantities = [{"quantity": config.quantity, "unit": config.unit} for config in configs]
    if any(quantity != quantities[0] for quantity in quantities):
        raise ValueError(f"the models predict {quantities}; give models of one quantity and unit")
    if len({config.weights.sha256 for config in configs}) < len(configs):
        raise ValueError("a model is named twice; an ensemble is of different ones")

    return {
        **quantities[0],
        "minimum": min(config.grid.minimum for config in configs),
        "maximum": max(config.grid.maximum for config in configs),
        "models": [config.name for config in configs],
    }


def _find(photos: Path, database: LabelDatabase) -> int:
    """Notes the photos that exist; names that no table can hold are listed. Returns the number of
    photos."""
    for batch in batched(photos_under(photos), PAGE_ROWS):
        odd: list[tuple[str, str]] = []
        present: list[tuple[str, int, int]] = []
        for name in batch:
            reason = odd_name(name)
            if reason:
                odd.append((printable(name), reason))
            else:
                status = (photos / name).stat()
                present.append((name, status.st_size, status.st_mtime_ns))

        database.add("listed", odd)
        database.add("present", present)

    num_photos = database.count("SELECT * FROM present")
    if not num_photos:
        raise ValueError(f"{photos}: holds no photo whose name a table can hold; rename them")
    return num_photos


def _group(database: LabelDatabase) -> int:
    """Notes each photo's group of near duplicates, and which photo of a group is kept; returns the
    number of kept photos."""
    columns = np.dtype([("hash", np.int64), ("num_pixels", np.int64)])
    photos_N = np.fromiter((row[1:] for row in database.readable()), columns)

    groups_N = near_groups(photos_N["hash"].copy().view(np.uint64))
    is_kept_N = kept_of_groups(groups_N, photos_N["num_pixels"])

    names = (photo_id for photo_id, *_ in database.readable())
    database.add("grouped", zip(names, groups_N.tolist(), is_kept_N.tolist(), strict=True))
    return int(is_kept_N.sum())


def _predict(photos: Path, model: str, predictor: Model, database: LabelDatabase) -> None:
    """Adds one model's predictions for the kept photos that it has not seen.

    `model` is the digest of the model's config: the config holds everything that a prediction
    depends on (weights, alignment, decoding, calibration).
    """
    with tqdm(
        total=database.count(UNSEEN, {"model": model}),
        desc=f"predict with {predictor.config.name}",
        unit=" photos",
    ) as bar:
        for batch in batched(database.unseen(model), CHUNK_PHOTOS):
            photo_ids = [photo_id for (photo_id,) in batch]
            results = predictor.predict_many(photos / photo_id for photo_id in photo_ids)

            pairs = zip(photo_ids, results, strict=True)
            database.add(
                "predicted", (_predicted(photo_id, model, result) for photo_id, result in pairs)
            )
            bar.update(len(batch))


def _predicted(photo_id: str, model: str, result: PhotoPrediction) -> Predicted:
    face = next((face for face in result.faces if face.chosen), None)
    if face is None:
        return Predicted(photo_id, model, None, None, None, result.reason)

    box = json.dumps([round(coordinate, 1) for coordinate in face.box])
    return Predicted(photo_id, model, face.value, face.std, box, None)


def _combine(database: LabelDatabase, models: str) -> None:
    """Combines each photo's predictions to its coarse label."""
    for batch in batched(database.predictions(models), PAGE_ROWS):
        photo_ids, values, stds, boxes = zip(*batch, strict=True)
        values_MN = np.array([json.loads(text) for text in values]).T
        stds_MN = np.array([json.loads(text) for text in stds]).T

        columns = [column.tolist() for column in combined(values_MN, stds_MN)]
        database.add("coarse", zip(photo_ids, *columns, boxes, strict=True))
