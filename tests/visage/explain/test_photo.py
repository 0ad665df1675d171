"""One photo explained: crops and maps are those of the predictor's own path, and the command writes
a PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.command import refused, visage
from tests.small_model import CROP_PX, small_config, small_model, small_network
from visage.detection.mtcnn import Faces
from visage.explain.photo import explain_photo
from visage.explain.score_map import score_map
from visage.inference import photos
from visage.inference.photos import FaceAligner, Model

UPRIGHT = np.float32([[70, 90], [130, 90], [100, 125], [78, 160], [122, 160]])


class DetectorOf:
    """Finds the faces that it was given in every photo."""

    def __init__(self, *offsets: int) -> None:
        points = np.array([UPRIGHT + offset for offset in offsets], np.float32).reshape(-1, 5, 2)
        boxes = np.concatenate([points.min(axis=1) - 30, points.max(axis=1) + 30], axis=1)
        self.faces = Faces(
            boxes_N4=boxes, landmarks_N52=points, probabilities_N=np.ones(len(points), np.float32)
        )

    def detect(self, photos: list[np.ndarray]) -> list[Faces]:
        return [self.faces for _ in photos]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((260, 240), Image.Resampling.BICUBIC).save(
        tmp_path / "photo.png"
    )
    return tmp_path / "photo.png"


def answering(*offsets: int) -> tuple[torch.nn.Module, Model]:
    network, config = small_network(small_config()), small_config()
    return network, Model(network, config, detector=DetectorOf(*offsets))


def test_crops_give_the_predicted_numbers_and_the_maps(photo: Path) -> None:
    network, predictor = answering(0, 20)
    faces = explain_photo(network, predictor, photo, True)
    assert len(faces) == 2
    crops = torch.from_numpy(np.stack([face.crop_HW3 for face in faces])).permute(0, 3, 1, 2)
    assert crops.shape == (2, 3, CROP_PX, CROP_PX)
    np.testing.assert_array_equal(
        predictor.predict_crops(crops, flip=True).value, [face.prediction.value for face in faces]
    )
    scores = score_map(network, predictor.config, crops, flip=True).numpy()
    np.testing.assert_array_equal(scores, np.stack([face.score_HW for face in faces]))
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


def test_a_photo_is_decoded_and_cropped_once(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, predictor = answering(0, 20)
    calls: list[str] = []
    read, crop = photos.read_photo, FaceAligner.cut
    monkeypatch.setattr(photos, "read_photo", lambda *a: [calls.append("read"), read(*a)][1])
    monkeypatch.setattr(FaceAligner, "cut", lambda *a: [calls.append("crop"), crop(*a)][1])

    assert len(explain_photo(network, predictor, photo, True)) == 2
    assert calls == ["read", "crop", "crop"]
    assert predictor.predict(photo)[0].aligned is None


def test_a_photo_without_a_face_explains_nothing_and_an_unreadable_one_is_refused(
    photo: Path,
) -> None:
    network, predictor = answering()
    assert explain_photo(network, predictor, photo, True) == []
    photo.write_bytes(b"no photo")
    with pytest.raises(ValueError, match=r"photo\.png"):
        explain_photo(network, predictor, photo, True)


def find_faces(monkeypatch: pytest.MonkeyPatch, *offsets: int) -> None:
    monkeypatch.setattr(FaceAligner, "find", lambda _, photos: DetectorOf(*offsets).detect(photos))


def test_the_command_writes_a_picture_or_says_why_not(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = photo.with_name("out.png")
    model = small_model(photo.with_name("model"))
    words = ["explain", photo, out, "--model", model]
    find_faces(monkeypatch, 0, 30)
    done = visage(*words)
    assert done.exit_code == 0
    assert done.stdout == f"{out}\n"
    assert "shown" not in done.stderr
    with Image.open(out) as image:
        assert image.format == "PNG"

    find_faces(monkeypatch, *range(10))
    assert "10 faces, the largest 8 are shown" in visage(*words).stderr

    out.unlink()
    find_faces(monkeypatch)
    assert "no face found" in refused(*words)
    assert not out.exists()


def test_without_a_name_the_picture_is_called_after_the_photo(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photo.parent / "here").mkdir()
    monkeypatch.chdir(photo.parent / "here")
    find_faces(monkeypatch, 0)
    visage("explain", photo, "--model", small_model(photo.with_name("model")))
    assert Path("photo-explained.png").is_file()


def test_a_wrong_out_is_refused_before_the_work(
    photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = photo.read_bytes()
    monkeypatch.setattr(
        "visage.explain.photo.load_model", lambda _: pytest.fail("the work has begun")
    )
    absent = photo.parent / "absent" / "out.png"
    link = photo.with_name("link.png")
    link.symlink_to(photo)
    wrong = [
        (absent, "an existing folder"),
        (photo.parent, "not a file"),
        (photo, "itself"),
        (link, "itself"),
    ]
    for out, said in wrong:
        assert said in refused("explain", photo, out)
    assert photo.read_bytes() == pixels
