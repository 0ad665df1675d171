"""The package as MLflow loads it: the predictor's documents, and a 400 with one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from model_registry.mlflow_client import load_package
from model_registry.served_model import registered_version
from tests.model_registry.served import Store, base64_of, package_folder, synthetic_photos
from visage.inference.loading import load

PHOTO = base64_of(synthetic_photos(1)[0])


@pytest.fixture(scope="module")
def model(store: Store) -> Any:
    return load_package(str(package_folder(store)))


def plain(document: Any) -> Any:
    """As JSON gives it: tuples become lists."""
    if isinstance(document, dict):
        return {key: plain(value) for key, value in document.items()}
    return [plain(item) for item in document] if isinstance(document, list | tuple) else document


def test_a_photo_gets_the_predictors_document(model: Any, store: Store) -> None:
    predictor = load(store.export, runtime="torch")
    photos = synthetic_photos(3)
    table = pd.DataFrame({"photo": [base64_of(photo) for photo in photos]})
    for flip in (True, False):
        documents = model.predict(table, params={"flip": flip, "all_faces": True})
        results = predictor.predict_many(photos, flip=flip)
        for document, result in zip(documents, results, strict=True):
            expected = result.to_dict()
            expected["model"]["version"] = str(store.version)
            assert plain(document) == plain(expected)
            assert document["faces"]


def test_a_score_map_is_a_list_of_rows(model: Any) -> None:
    table = pd.DataFrame({"photo": [PHOTO]})
    [document] = model.predict(table, params={"explain": True})
    assert len(document["faces"][0]["score_map"]) > 1


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"photo": "/etc/passwd"}, "item 0: the photo is of no known kind"),
        ({"photo": "data:image/gif;base64,R0lGODlh"}, "item 0: the photo is a GIF picture"),
        ({"photo": "!"}, "it holds '!' at place 0"),
        ({"face": PHOTO}, "160 x 160 px, this model takes"),
        ({"image": PHOTO}, "send photo"),
    ],
)
def test_a_bad_row_is_a_400_with_one_sentence(
    model: Any, row: dict[str, str], sentence: str
) -> None:
    with pytest.raises(MlflowException, match=sentence) as caught:
        model.predict(pd.DataFrame([row]))
    assert caught.value.get_http_status_code() == 400


def test_the_registered_version_is_read_from_what_mlflow_notes(tmp_path: Path) -> None:
    assert registered_version(tmp_path) is None
    for version in ("7", "'7'"):
        (tmp_path / "registered_model_meta").write_text(
            f"model_name: a\nmodel_version: {version}\n"
        )
        assert registered_version(tmp_path) == "7"
