"""The explain stage on a small model and random faces: every file, its numbers against naive ones,
its refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stages.explain import ExplainSettings, explain
from tests.small_faces import ALIGNMENT, CROP_PX, some_faces, write_faces
from tests.small_model import small_model
from visage.data.face_table import FaceTable
from visage.explain.score_map import score_map
from visage.explain.study import drawn_rows
from visage.inference.loading import load
from visage.inference.photos import Model
from visage.weights import load_model

SETTINGS = ExplainSettings(
    split="test",
    max_faces=100,
    places_per_side=3,
    groups=(),
    band_width=25.0,
    num_resamples=50,
    interval=0.9,
    num_sheet_faces=3,
    poor_error=5.0,
    max_tsne_faces=100,
    perplexity=30.0,
    seed=0,
)
NUM_TEST = 12
PICTURES = {
    "score_maps",
    "group_faces",
    "occlusion",
    "faces",
    "best_faces",
    "worst_faces",
    "highest_faces",
    "lowest_faces",
    "tsne",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder with all inputs."""

    folder: Path

    @property
    def table(self) -> FaceTable:
        return FaceTable.open(self.folder / "faces", ["test"])

    @property
    def predictor(self) -> Model:
        return load(self.folder / "model", runtime="torch")

    def explain(self, out: str, report: Any = lambda *_: None, **changes: Any) -> dict[str, Any]:
        names = {"model": "model", "faces": "faces", "predictions": "predictions.parquet"}
        names |= {"metrics": "metrics.json", "raw": "raw", "explain": out}
        paths = {name: self.folder / path for name, path in names.items()}
        explain(dataclasses.replace(SETTINGS, **changes), **paths, report=report)
        document: dict[str, Any] = json.loads(
            (self.folder / out / "explain.json").read_text(encoding="utf-8")
        )
        return document


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("explain"))
    small_model(run.folder / "model")
    write_faces(run.folder / "faces", some_faces(4, 2, NUM_TEST))
    table = run.table
    for photo_id in table.photo_id.tolist():
        photo = run.folder / "raw" / photo_id
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (200, 100, 50)).save(photo)
    predicted = run.predictor.predict_crops(table.decode(np.arange(len(table))))
    columns = {
        "photo_id": table.photo_id.tolist(),
        "split": ["test"] * len(table),
        "prediction": predicted.value,
    }
    other = {"photo_id": ["train/x.jpg"], "split": ["train"], "prediction": [1.0]}
    both = [pa.table(other), pa.table(columns)]
    pq.write_table(pa.concat_tables(both), run.folder / "predictions.parquet")
    (run.folder / "metrics.json").write_text(
        json.dumps({"decision": {"decode": "expectation", "flip": True}})
    )
    return run


@pytest.fixture(scope="module")
def document(run: Run) -> dict[str, Any]:
    return run.explain("all_faces")


def test_every_file_is_there_and_nothing_else(run: Run, document: dict[str, Any]) -> None:
    files = {path.name for path in (run.folder / "all_faces").iterdir()}
    assert files == {f"{name}.png" for name in PICTURES} | {"explain.json", "explain.html"}
    for name in PICTURES:
        with Image.open(run.folder / "all_faces" / f"{name}.png") as image:
            assert image.format == "PNG"
    assert (run.folder / "all_faces" / "explain.html").read_text(encoding="utf-8").count(
        "<img"
    ) == len(PICTURES)
    assert document["decode"] == "expectation"


def test_figures_are_those_of_the_faces_asked_one_by_one(
    run: Run, document: dict[str, Any]
) -> None:
    table, predictor = run.table, run.predictor
    crops = table.decode(np.arange(NUM_TEST))
    plain = np.abs(predictor.predict_crops(crops).value - table.label)
    hidden = crops.clone()
    hidden[:, :, 11:21, 21:32] = torch.tensor([153, 128, 102], dtype=torch.uint8)[:, None, None]
    covered = np.abs(predictor.predict_crops(hidden).value - table.label)
    group = document["groups"]["all"]
    assert group["num_faces"] == NUM_TEST
    assert group["mae"] == pytest.approx(plain.mean(), abs=1e-6)
    [square] = [place for place in group["squares"] if (place["row"], place["column"]) == (2, 3)]
    assert square["value"] == pytest.approx(covered.mean() / plain.mean() - 1, abs=1e-6)
    network, config = load_model(run.folder / "model")
    scores = score_map(network, config, crops, flip=True)
    assert square["score"] == pytest.approx(float(scores[:, 11:21, 21:32].mean()), abs=1e-5)
    assert (len(group["squares"]), len(group["stripes"])) == (9, 3)


def test_groups_are_bands_of_the_label(run: Run, document: dict[str, Any]) -> None:
    table = run.table
    error = np.abs(
        run.predictor.predict_crops(table.decode(np.arange(NUM_TEST))).value - table.label
    )
    groups = {name: group for name, group in document["groups"].items() if name != "all"}
    assert sum(group["num_faces"] for group in groups.values()) == NUM_TEST
    for name, group in groups.items():
        lower = float(name.split("-")[0])
        member = (lower <= table.label) & (table.label < lower + 25)
        assert group["num_faces"] == member.sum()
        assert group["mae"] == pytest.approx(error[member].mean(), abs=1e-6)
        assert all(
            np.isfinite([p["value"], p["low"], p["high"]]).all()
            for p in group["squares"] + group["stripes"]
        )
        assert all(place["low"] <= place["high"] for place in group["stripes"])


def test_groups_are_the_ranges_that_were_named(run: Run) -> None:
    label = run.table.label
    low, high = np.sort(label)[[2, 6]].tolist()
    groups = run.explain("named", groups=((low, high), (1000.0, 2000.0)))["groups"]
    assert set(groups) == {"all", f"{low:g}-{high:g}"}
    assert groups["all"]["num_faces"] == NUM_TEST
    assert groups[f"{low:g}-{high:g}"]["num_faces"] == ((label >= low) & (label <= high)).sum()


def test_a_photo_that_is_gone_is_named(run: Run, tmp_path: Path) -> None:
    names = {"model": "model", "faces": "faces", "predictions": "predictions.parquet"}
    paths: dict[str, Any] = {name: run.folder / path for name, path in names.items()}
    paths |= {"metrics": run.folder / "metrics.json", "raw": tmp_path / "raw"}
    with pytest.raises(ValueError, match=rf"{tmp_path / 'raw'}/.*run the download stage again"):
        explain(SETTINGS, **paths, explain=tmp_path / "explain")


def test_a_cap_draws_faces_by_the_seed(run: Run) -> None:
    reported: list[Mapping[str, float]] = []
    first = run.explain(
        "capped", lambda _, values: reported.append(values), max_faces=5, max_tsne_faces=6
    )
    again = run.explain("again", max_faces=5, max_tsne_faces=6)
    assert first["groups"]["all"]["num_faces"] == reported[0]["num_faces"] == 5
    assert first == again
    drawn = [drawn_rows(NUM_TEST, 5, seed) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert all(len(set(rows.tolist())) == 5 and rows.max() < NUM_TEST for rows in drawn)
    error = np.abs(
        run.predictor.predict_crops(run.table.decode(drawn[0])).value - run.table.label[drawn[0]]
    )
    assert first["groups"]["all"]["mae"] == pytest.approx(error.mean(), abs=1e-6)
    for name in PICTURES:
        files = [
            (run.folder / folder / f"{name}.png").read_bytes() for folder in ("capped", "again")
        ]
        assert files[0] == files[1], name


def test_sheets_show_the_split_from_best_to_worst(run: Run) -> None:
    page = (run.folder / "all_faces" / "explain.html").read_text(encoding="utf-8")
    table = run.table
    value = run.predictor.predict_crops(table.decode(np.arange(NUM_TEST))).value
    error = np.sort(np.abs(value - table.label))
    assert f"Best predictions: at most {error[2]:.2g} years off" in page
    assert f"Worst predictions: at least {error[-3]:.3g} years off" in page
    assert f"Highest predictions: {np.sort(value)[-3]:.3g} years and more" in page


def test_what_does_not_belong_together_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no face of split 'exam'"):
        run.explain("no", split="exam")
    with pytest.raises(ValueError, match="not the 2 faces of split 'val'; run evaluate"):
        run.explain("no", split="val")
    other = write_faces(
        tmp_path / "faces", some_faces(), alignment={**ALIGNMENT, "face_scale": 0.5}
    )
    paths: dict[str, Any] = {
        "model": run.folder / "model",
        "predictions": run.folder / "predictions.parquet",
    }
    paths |= {"metrics": run.folder / "metrics.json", "raw": run.folder / "raw"}
    with pytest.raises(ValueError, match="align the photos with the config's settings"):
        explain(SETTINGS, **paths, faces=other, explain=tmp_path / "no")
    with pytest.raises(ValueError, match=f"places_per_side is {CROP_PX + 1}"):
        run.explain("no", places_per_side=CROP_PX + 1)
    assert not (run.folder / "no").exists()
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_faces": 0}, "max_faces is 0"),
        ({"band_width": 0.0}, "band_width is 0"),
        ({"poor_error": 0.0}, "poor_error is 0"),
        ({"groups": ((0.0, 3.0), (3.0, 9.0))}, "do not overlap"),
        ({"groups": ((20.0, 35.0), (0.0, 3.0))}, "the lowest first"),
        ({"max_tsne_faces": 3}, "max_tsne_faces is 3: give 4"),
    ],
)
def test_settings_out_of_bounds_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SETTINGS, **change)
