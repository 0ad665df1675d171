"""A folder of unlabelled photos, from the first look to the table that training reads; drawn faces,
tiny models."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.label import flow, hashes
from flows.label.review import COLUMNS, finish
from stages.settings import read_json
from tests.command import refused, visage
from tests.small_model import small_config, small_network
from tests.stages.sources.test_sources import read
from visage.inference.fusion import combined
from visage.inference.loading import load
from visage.inference.photos import Model
from visage.model_config import CalibrationConfig
from visage.synthetic import DrawnSet, draw_set
from visage.weights import load_model, save_model

NUM_FACES = 4


def model(folder: Path, seed: int, **changes: Any) -> Path:
    config = small_config(name=f"small-{seed}", **changes)
    save_model(folder, small_network(config, seed), config, "float32")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [model(folder / str(seed), seed) for seed in range(2)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Synthetic faces, a smaller copy of the first, a picture without a face, a file that is no
    picture."""
    folder = tmp_path / "web"
    drawn = DrawnSet(
        num_people=NUM_FACES,
        photos_per_person=1,
        px=160,
        seed=3,
        age_span_years=90.0,
        label_noise=0.0,
        dirt={},
    )
    draw_set(folder, drawn, num_workers=1)
    (folder / "labels.csv").unlink()

    first = sorted(folder.rglob("*.jpg"))[0]
    Image.open(first).resize((120, 120)).save(folder / "a copy & more.jpg", quality=70)
    noise = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((160, 160)).save(folder / "noise.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_photos_become_a_sheet_to_correct(photos: Path, models: list[Path], tmp_path: Path) -> None:
    counts = flow.label(photos, models, tmp_path / "out", num_shown=3)
    assert counts == {
        "photos": NUM_FACES + 3,
        "kept": NUM_FACES + 1,
        "labelled": NUM_FACES,
        "left out": 3,
        "corrections not carried": 0,
    }

    rows = rows_of(tmp_path / "out" / "review.csv")
    assert tuple(rows[0]) == COLUMNS
    for row in rows:
        faces = []
        for folder in models:
            result = load(folder, runtime="torch").predict(photos / row["photo"])
            faces.append(next(face for face in result if face.chosen))
        values = np.array([[face.value] for face in faces])
        stds = np.array([[face.std] for face in faces])

        written = [float(row[name]) for name in ("label", "spread", "sigma")]
        expected = [column.item() for column in combined(values, stds)]
        assert written == pytest.approx(expected, rel=5e-3, abs=5e-3)
        assert row["corrected"] == ""

    spreads = [float(row["spread"]) for row in rows]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 0

    reasons = {row["photo"]: row["reason"] for row in rows_of(tmp_path / "out" / "left_out.csv")}
    first = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("0*.jpg"))[0]
    assert reasons["a copy & more.jpg"] == f"near duplicate of {first}"
    assert "not a picture" in reasons["broken.jpg"]
    assert reasons["noise.png"] == "no face found"

    page = (tmp_path / "out" / "sheet_001.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3
    assert "http" not in page
    assert read_json(tmp_path / "out" / "label.json")["maximum"] == 100.0


def test_a_second_run_predicts_only_what_is_new(
    photos: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.label(photos, models[:1], tmp_path / "out", num_shown=0)
    review = (tmp_path / "out" / "review.csv").read_bytes()
    asked: list[str] = []
    predict_many = Model.predict_many

    def noting(self: Model, sources: Any) -> Any:
        listed = list(sources)
        asked.extend(f"{self.config.name} {path.name}" for path in listed)
        return predict_many(self, listed)

    monkeypatch.setattr(Model, "predict_many", noting)
    hashed: list[str] = []
    monkeypatch.setattr(hashes, "perceptual_hash", lambda _: hashed.append("x") or 0)
    flow.label(photos, models[:1], tmp_path / "out", num_shown=0)
    assert (asked, hashed) == ([], [])
    assert (tmp_path / "out" / "review.csv").read_bytes() == review

    corrected = review.replace(b",\n", b",33\n", 1)
    (tmp_path / "out" / "review.csv").write_bytes(corrected)
    flow.label(photos, models, tmp_path / "out", num_shown=0)
    said = {row["photo"]: row["corrected"] for row in rows_of(tmp_path / "out" / "review.csv")}
    [photo_id] = [photo_id for photo_id, text in said.items() if text]
    assert (photo_id.encode(), said[photo_id]) == (review.split(b"\n")[1].split(b",")[0], "33")
    assert (tmp_path / "out" / "review_before.csv").read_bytes() == corrected
    assert len(asked) == NUM_FACES + 1
    assert all(name.startswith("small-1") for name in asked)

    monkeypatch.setattr(hashes, "perceptual_hash", lambda _: hashed.append("x") or 2**64 - 1)
    photo = photos / rows_of(tmp_path / "out" / "review.csv")[0]["photo"]
    stream = io.BytesIO()
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(stream, "JPEG")
    photo.write_bytes(stream.getvalue())
    (photos / "noise.png").unlink()
    asked.clear()
    counts = flow.label(photos, models, tmp_path / "out", num_shown=0)
    assert len(hashed) == 1
    assert asked == [f"small-0 {photo.name}", f"small-1 {photo.name}"]
    assert (counts["photos"], counts["labelled"]) == (NUM_FACES + 2, NUM_FACES)


def edit(review: Path, line: int, **cells: str) -> dict[str, str]:
    """Edits a line of the sheet (0 is the first photo's), as a person does; returns the new row."""
    rows = rows_of(review)
    rows[line] |= cells
    lines = [",".join(COLUMNS), *(",".join(row.values()) for row in rows)]
    review.write_text("\n".join(lines), encoding="utf-8")
    return rows[line]


def corrections(review: Path) -> dict[str, str]:
    """The corrected photos of a sheet with their labels."""
    return {row["photo"]: row["corrected"] for row in rows_of(review) if row["corrected"]}


def test_another_folder_of_the_same_name_is_refused(
    photos: Path, models: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other = tmp_path / "crawl2" / "web"
    shutil.copytree(photos, other)
    flow.label(photos, models[:1], out, num_shown=0)
    edit(out / "review.csv", 0, corrected="33")
    before = (out / "review.csv").read_bytes()

    with pytest.raises(
        ValueError,
        match=f"holds the work on {photos}, not on {other}; give another folder with --out",
    ):
        flow.label(other, models[:1], out, num_shown=0)
    assert (out / "review.csv").read_bytes() == before
    assert not (out / "review_before.csv").exists()


def test_a_correction_stays_with_the_picture_and_not_with_the_name(
    photos: Path, models: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flow.label(photos, models[:1], out, num_shown=0)
    changed = edit(out / "review.csv", 0, corrected="33")["photo"]
    touched = edit(out / "review.csv", 1, corrected="44")["photo"]
    Image.open(photos / changed).transpose(Image.Transpose.ROTATE_180).save(photos / changed)
    os.utime(photos / touched, (1, 1))

    counts = flow.label(photos, models[:1], out, num_shown=0)
    assert corrections(out / "review.csv") == {touched: "44"}
    assert counts["corrections not carried"] == 1
    [lost] = rows_of(out / "not_carried.csv")
    assert (lost["photo"], lost["corrected"]) == (changed, "33")
    assert "gone, changed" in lost["reason"]


def test_an_edited_sigma_is_carried_and_the_sheet_kept(
    photos: Path, models: list[Path], tmp_path: Path
) -> None:
    review = tmp_path / "out" / "review.csv"
    flow.label(photos, models[:1], review.parent, num_shown=0)
    edited = edit(review, 0, sigma="1.25")
    same = edit(review, 1, sigma=rows_of(review)[1]["sigma"] + "0")
    before = review.read_bytes()

    for _ in range(2):
        flow.label(photos, models, review.parent, num_shown=0)
        sigmas = {row["photo"]: row["sigma"] for row in rows_of(review)}
        assert sigmas[edited["photo"]] == "1.25"
        assert float(sigmas[same["photo"]]) != float(same["sigma"]), "two models differ from one"
        if before:
            assert review.with_name("review_before.csv").read_bytes() == before
        before = b""


def test_a_correction_moves_to_the_larger_near_duplicate(
    photos: Path, models: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flow.label(photos, models[:1], out, num_shown=0)
    first = edit(out / "review.csv", 0, corrected="30")["photo"]
    second = edit(out / "review.csv", 1, corrected="31")["photo"]
    picture = Image.open(photos / first)
    picture.resize((2 * picture.width, 2 * picture.height)).save(photos / "larger.png")

    counts = flow.label(photos, models[:1], out, num_shown=0)
    assert corrections(out / "review.csv") == {"larger.png": "30", second: "31"}
    assert counts["corrections not carried"] == 0
    reasons = {row["photo"]: row["reason"] for row in rows_of(out / "left_out.csv")}
    assert reasons[first] == "near duplicate of larger.png"


def test_of_two_corrections_for_one_picture_the_other_is_listed(
    photos: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (photos / "noise.png").unlink()
    flow.label(photos, models[:1], out, num_shown=0)
    for line in (0, 1):
        edit(out / "review.csv", line, corrected=f"3{line}")
    one_group = np.zeros(NUM_FACES + 2, np.int64)
    monkeypatch.setattr(flow, "near_groups", lambda hashes_N: one_group[: len(hashes_N)])

    counts = flow.label(photos, models[:1], out, num_shown=0)
    [row] = rows_of(out / "review.csv")
    [lost] = rows_of(out / "not_carried.csv")
    assert {row["corrected"], lost["corrected"]} == {"30", "31"}
    assert lost["reason"] == f"{row['photo']} has a correction"
    assert counts["corrections not carried"] == 1


def test_a_model_with_another_config_predicts_again(
    photos: Path, models: list[Path], tmp_path: Path
) -> None:
    """A calibrated model has the weights of the one it was calibrated from, and other
    distributions."""
    calibrated = tmp_path / "calibrated"
    shutil.copytree(models[0], calibrated)
    network, config = load_model(calibrated)
    calibration = CalibrationConfig(temperature=3.0, mass=0.8, offset=0.0, num_faces=9, flip=True)
    save_model(calibrated, network, dataclasses.replace(config, calibration=calibration), "float32")
    assert load_model(calibrated)[1].weights.sha256 == config.weights.sha256

    flow.label(photos, models[:1], tmp_path / "out", num_shown=0)
    narrow = {row["photo"]: row["sigma"] for row in rows_of(tmp_path / "out" / "review.csv")}
    flow.label(photos, [calibrated], tmp_path / "out", num_shown=0)
    wide = {row["photo"]: row["sigma"] for row in rows_of(tmp_path / "out" / "review.csv")}
    assert wide.keys() == narrow.keys()
    assert all(wide[photo] != narrow[photo] for photo in narrow)

    with pytest.raises(ValueError, match="named twice"):
        flow.label(photos, [models[0], calibrated], tmp_path / "out", num_shown=0)


def test_processes_hash_what_one_hashes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (path.relative_to(photos).as_posix(), 1, 2)
        for path in sorted(photos.rglob("*.*"))
        if path.suffix
    ]
    monkeypatch.setattr(hashes.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(hashes, "CHUNK_PHOTOS", 3)

    several = list(hashes.hash_all(photos, found, hashes.FEW_PHOTOS + 1))
    assert several == list(hashes.hash_all(photos, found, len(found)))
    assert [row.photo_id for row in several] == [name for name, *_ in found]


def test_models_must_predict_the_same_quantity(
    photos: Path, models: list[Path], tmp_path: Path
) -> None:
    other = model(tmp_path / "beauty", 3, quantity="attractiveness", unit="points")
    for wrong, message in (
        ([models[0], other], "one quantity and unit"),
        ([models[0], models[0]], "named twice"),
    ):
        with pytest.raises(ValueError, match=message):
            flow.label(photos, wrong, tmp_path / "out", num_shown=0)

    for folder, message in (
        (tmp_path / "absent", "no such folder"),
        (tmp_path / "beauty", "holds no photo"),
    ):
        with pytest.raises(ValueError, match=message):
            flow.label(folder, models, tmp_path / "out", num_shown=0)
    assert not (tmp_path / "out").exists(), "a mistyped folder leaves nothing behind"


def sheet(folder: Path, *lines: str) -> Path:
    path = folder / "review.csv"
    path.write_text("\n".join([",".join(COLUMNS), *lines]), encoding="utf-8-sig")
    return path


LINES = (
    "a.jpg,30,5,6,0,33.5",
    "b.jpg,40,4,5,1,",
    "c.jpg,50,3,4,2,fifty",
    "d.jpg,50,3,4,3,101",
    "e.jpg,50,3,-1,4,",
)
LINES += (",50,3,4,5,20", "a.jpg,30,5,6,0,34")


@pytest.mark.parametrize(
    ("unreviewed", "wanted"), [("take", ["a.jpg", "b.jpg"]), ("leave", ["a.jpg"])]
)
def test_a_corrected_sheet_becomes_a_table_that_training_reads(
    tmp_path: Path, unreviewed: Any, wanted: list[str]
) -> None:
    table, skipped = tmp_path / "labels.csv", tmp_path / "skipped.csv"
    done = finish(sheet(tmp_path, *LINES), table, skipped, (0.0, 100.0), unreviewed)
    assert (done.corrected, done.faulty) == (1, 5)
    assert (done.taken, done.left_out) == ((1, 0) if unreviewed == "take" else (0, 1))

    reasons = [row["reason"] for row in rows_of(skipped)]
    expected = [
        "'fifty' is no number",
        "not between 0 and 100",
        "no standard",
        "names no photo",
        "again",
    ]
    assert all(text in reason for text, reason in zip(expected, reasons, strict=True)), reasons

    for name in wanted:
        (tmp_path / "web").mkdir(exist_ok=True)
        (tmp_path / "web" / name).write_bytes(b"x")
    columns = {"photo": "photo", "label": "label", "sigma": "sigma"}
    columns |= dict.fromkeys(["person", "sex", "ethnicity", "split"])
    options = {"table": str(table), "delimiter": ",", "photos_folder": "web", "columns": columns}
    rows, listed = read("table", tmp_path, options)
    assert not listed
    assert [row.photo_id for row in rows] == [f"web/{name}" for name in wanted]
    assert (rows[0].label, rows[0].sigma) == (33.5, 6.0)


def test_a_sheet_without_its_columns_or_lines_is_refused(tmp_path: Path) -> None:
    paths = (tmp_path / "labels.csv", tmp_path / "skipped.csv", (0.0, 100.0), "leave")
    with pytest.raises(ValueError, match="no such sheet"):
        finish(tmp_path / "absent.csv", *paths)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no line is usable"):
        finish(sheet(tmp_path, LINES[1]), *paths)  # type: ignore[arg-type]
    (tmp_path / "review.csv").write_text("photo;label\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no column 'corrected'"):
        finish(tmp_path / "review.csv", *paths)  # type: ignore[arg-type]
    assert not (tmp_path / "labels.csv").exists()


def test_the_command_line(photos: Path, models: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    review = output / "review.csv"
    words = ["label", photos, "--output", output]
    done = visage(*words, "--model", models[0], "--show", "1")
    assert done.exit_code == 0
    assert f"labelled {NUM_FACES}" in done.stdout

    assert "--unreviewed take or leave" in refused(*words, "--finish", review)
    assert "--unreviewed belongs to --finish" in refused(*words, "--unreviewed", "take")
    decided = ["--finish", review, "--unreviewed", "take"]
    elsewhere = ["label", photos, "--output", tmp_path / "no"]
    assert "run visage label without --finish first" in refused(*elsewhere, *decided)

    assert visage(*words, *decided).exit_code == 0
    assert len(rows_of(output / "labels.csv")) == NUM_FACES
