"""`visage predict`: which photos, in which form, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.command import refused, visage
from tests.conftest import REPOSITORY
from tests.small_model import small_config
from visage.detection.image_io import PhotoError, read_photo
from visage.inference.loading import load
from visage.inference.results import FacePrediction, PhotoPrediction
from visage.synthetic import encode_face, sample_person, sample_photo

UGLY = [
    "two words.jpg",
    "a'b\"c.jpg",
    "$HOME `touch x` $(touch x).jpg",
    "-rf.jpg",
    "--json",
    "new\nline.jpg",
    "star*[a]?.jpg",
    "#;&|<>.jpg",
    "é ü 漢.jpg",
    os.fsdecode(b"no utf-8 \xff.jpg"),
    "escape\x1b[31m.jpg",
]


class OneFace:
    """A model that finds one face in every photo that is not black."""

    config = small_config()

    def predict_many(self, photos: Iterable[Path]) -> Iterator[PhotoPrediction]:
        for path in photos:
            try:
                pixels_HWC = read_photo(path)
            except PhotoError as error:
                yield self._result(0, 0, (), str(error), False, np.zeros((1, 1, 3), np.uint8))
                continue
            height, width = pixels_HWC.shape[:2]
            faces = (self._face(),) if pixels_HWC.any() else ()
            reason = None if faces else "no face found"
            yield self._result(width, height, faces, reason, True, pixels_HWC)

    def _result(
        self,
        width: int,
        height: int,
        faces: tuple[FacePrediction, ...],
        reason: str | None,
        readable: bool,
        pixels_HWC: Any,
    ) -> PhotoPrediction:
        return PhotoPrediction(
            width=width,
            height=height,
            faces=faces,
            reason=reason,
            readable=readable,
            config=self.config,
            pixels=lambda: pixels_HWC,
        )

    def _face(self) -> FacePrediction:
        return FacePrediction(
            value=31.26,
            std=6.0,
            low=20.4,
            high=41.6,
            distribution=np.full(self.config.grid.num_labels, 1 / 11, np.float32),
            box=(2.0, 3.5, 12.0, 15.25),
            landmarks=((4.0, 5.0),) * 5,
            probability=0.99,
            chosen=True,
            quantity="age",
            unit="years",
            grid=self.config.grid,
        )


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked `visage.load` for."""
    asked: dict[str, Any] = {}

    def load_it(model: str | None, **settings: Any) -> OneFace:
        asked.update(settings, model=model)
        return OneFace()

    monkeypatch.setattr("visage.load", load_it)
    return asked


def write_photo(path: Path, grey: int = 120) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (grey, grey, grey)).save(path, "JPEG")
    return path


def test_a_table_that_a_person_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photo(Path("a.jpg"))
    write_photo(Path("holidays/black.jpg"), 0)
    done = visage("predict", "a.jpg", "holidays")
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "photo               face  value          80 % interval  box",
        "a.jpg               1     31.3 years     20 to 42       2 4 12 15",
        "holidays/black.jpg  -     no face found",
    ]


def test_one_photo_is_one_document_and_several_are_lines(tmp_path: Path) -> None:
    one = write_photo(tmp_path / "a.jpg")
    two = write_photo(tmp_path / "b.jpg", 0)
    document = json.loads(visage("predict", "--json", one).stdout)
    assert document["faces"][0]["value"] == 31.26
    assert "probabilities" not in document["faces"][0]
    assert "file" not in document

    full = json.loads(visage("predict", "--json", "--distribution", one).stdout)
    assert len(full["faces"][0]["probabilities"]) == 11

    lines = visage("predict", "--json", one, two).stdout.splitlines()
    first, second = map(json.loads, lines)
    assert first == {"file": str(one), **document}
    assert (second["file"], second["reason"]) == (str(two), "no face found")

    # A folder may get more photos tomorrow: its form does not depend on their number.
    (tmp_path / "one").mkdir()
    one.rename(tmp_path / "one" / "a.jpg")
    [line] = visage("predict", "--json", tmp_path / "one").stdout.splitlines()
    assert json.loads(line)["file"] == str(tmp_path / "one" / "a.jpg")


def test_csv_has_a_row_a_face_and_one_for_a_photo_without(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg")
    write_photo(tmp_path / "b.jpg", 0)
    (tmp_path / "c.jpg").write_bytes(b"no photo")
    done = visage("predict", "--csv", tmp_path)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["file"] for row in rows] == [
        str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg")
    ]
    assert (rows[0]["value"], rows[0]["x1"], rows[0]["chosen"]) == ("31.26", "12.0", "true")
    assert (rows[1]["value"], rows[1]["reason"]) == ("", "no face found")
    assert rows[2]["reason"]
    assert done.exit_code == 1

    file = tmp_path / "out.csv"
    assert visage("predict", "--csv", "--output", file, tmp_path / "a.jpg").stdout == ""
    assert (
        file.read_text(encoding="utf-8").splitlines()[1].startswith(f"{tmp_path / 'a.jpg'},1,age")
    )


def test_a_bad_photo_is_named_and_the_others_are_answered(tmp_path: Path) -> None:
    good = write_photo(tmp_path / "good.jpg")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    done = visage("predict", good, bad, tmp_path / "absent.jpg", tmp_path / "*.gif")
    assert done.exit_code == 1
    assert "good.jpg" in done.stdout
    told = done.stderr.splitlines()
    assert len(told) == 3
    assert all(line.startswith("visage predict: ") for line in told)
    text = done.stderr
    assert "bad.jpg: " in text
    assert "absent.jpg: no such file or folder" in text
    assert "*.gif: a pattern that matches no photo" in text


def test_patterns_and_folders_name_each_photo_once(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg")
    write_photo(tmp_path / "deep" / "er" / "b.jpg")
    (tmp_path / "deep" / "notes.txt").write_text("no photo")
    words = [tmp_path / "a.jpg", tmp_path, f"{tmp_path}/**/*.jpg"]
    lines = visage("predict", "--json", *words).stdout.splitlines()
    assert [Path(json.loads(line)["file"]).name for line in lines] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("name", UGLY)
def test_any_name_is_taken_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photo(Path(name))
    done = visage("predict", "--draw", "out", "--", name)
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2, "one line a face, whatever the name"
    assert "\x1b" not in done.stdout
    assert len(list(Path("out").iterdir())) == 1

    lines = visage("predict", "--json", "--", name, name).stdout.splitlines()
    assert json.loads(lines[0])["file"] == name


def test_drawings_go_to_a_folder_and_over_nothing(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "a.jpg")
    write_photo(tmp_path / "in" / "sub" / "a.jpg")
    write_photo(tmp_path / "in" / "b.png")
    out = tmp_path / "out"
    assert visage("predict", tmp_path / "in", "--draw", out).exit_code == 0
    drawn = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.jpg"))
    assert drawn == ["a.jpg", "b.png.jpg", "sub/a.jpg"]
    with Image.open(out / "a.jpg") as image:
        assert image.size == (40, 30)
        assert len(image.getcolors(40 * 30) or []) > 1, "a box is drawn"

    photo = tmp_path / "in" / "a.jpg"
    before = photo.read_bytes()
    assert "exists already" in refused("predict", photo, "--draw", tmp_path / "in")
    assert photo.read_bytes() == before

    other = tmp_path / "in" / "sub" / "a.jpg"
    told = refused("predict", photo, other, "--draw", tmp_path / "new")
    assert str(photo) in told
    assert str(other) in told
    assert not (tmp_path / "new").exists()


def test_the_output_is_no_photo(tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "a.jpg")
    before = photo.read_bytes()
    assert "this is a photo" in refused("predict", photo, "-o", photo)
    assert photo.read_bytes() == before
    assert "existing folder" in refused("predict", photo, "-o", tmp_path / "no" / "out.csv")


def test_the_options_reach_the_model(tmp_path: Path, wanted: dict[str, Any]) -> None:
    photo = write_photo(tmp_path / "a.jpg")
    visage("predict", photo)
    assert wanted == {"model": None, "runtime": None, "precision": "float", "flip": True}
    words = ["--model", "m", "--runtime", "torch", "--precision", "int8", "--no-flip"]
    visage("predict", photo, *words)
    assert wanted == {"model": "m", "runtime": "torch", "precision": "int8", "flip": False}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--json", "--csv"], "give one of them"),
        (["--distribution"], "belongs to --json"),
        (["--runtime", "fast"], "'onnx', 'torch'"),
        (["--nonsense"], "No such option: --nonsense"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], told: str, tmp_path: Path) -> None:
    assert told in refused("predict", write_photo(tmp_path / "a.jpg"), *words)


def test_without_a_photo_it_says_so() -> None:
    assert "photos" in refused("predict")


def run(*words: str, cwd: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """The command as a process."""
    return subprocess.run(
        [sys.executable, "-m", "visage.cli", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        **settings,
    )


def test_the_released_model_answers_a_drawn_face(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photo = encode_face(sample_photo(sample_person(rng), rng, clean=True), 200)
    (tmp_path / "face.jpg").write_bytes(photo)
    done = run("predict", "face.jpg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"face\.jpg +1 +[\d.]+ years +\d+ to \d+ ", done.stdout)
    assert done.stderr == ""

    done = run("predict", "face.jpg", "--json", "--distribution", cwd=tmp_path)
    own = load().predict(tmp_path / "face.jpg").to_dict()
    assert json.loads(done.stdout) == json.loads(json.dumps(own))


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m visage.cli --help | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in done.stderr
