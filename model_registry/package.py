"""An exported model becomes a registered version: a pyfunc from code, safe to open and complete in
itself.

models/export/ -> a package in MLflow: config and weights (safetensors), limits of a request, the
code of `visage`, the file that answers (model_registry/served_model.py), signature, an input
example of a drawn face, pinned requirements. No pickle is in it, and neither DVC nor Prefect nor
Ray is needed to load it.
"""

from __future__ import annotations

import base64
import dataclasses
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

import visage
from model_registry.mlflow_client import connect
from model_registry.served_model import FACE, LANDMARKS, PHOTO, Limits
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.strict import check_positive
from visage.synthetic import encode_face, sample_person, sample_photo
from visage.weights import load_model, sha256_of

REFERENCE_FILE = "reference.json"  # the training faces' summary, against which drift is measured
ANSWERER = Path(__file__).with_name("served_model.py")
REQUIREMENTS = (  # what an answer imports, and what MLflow's scoring server runs on
    "mlflow",
    "torch",
    "torchvision",
    "facenet-pytorch",
    "safetensors",
    "numpy",
    "pandas",
    "pillow",
    "fastapi",
    "uvicorn",
)
WEIGHTS_TAG, CARD_TAG, LIMITS_TAG = "visage.weights_sha256", "visage.card_sha256", "visage.limits"


@dataclass(frozen=True, kw_only=True)
class PackageSettings:
    """Name under which versions are registered, and what a request to the served model may hold:
    bytes as sent, pixels, photos and aligned faces together, bytes and pixels of each."""

    model: str
    max_request_bytes: int
    max_request_pixels: int
    max_photos: int
    max_photo_bytes: int
    max_photo_pixels: int

    def __post_init__(self) -> None:
        check_positive(self, *(field.name for field in dataclasses.fields(Limits)))

    @property
    def limits(self) -> Limits:
        return Limits(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)}
        )


def package(export: Path, run_id: str, settings: PackageSettings) -> int:
    """The version of `settings.model` that holds the model in `export` as made by run `run_id`,
    registered once.

    A second call with the same run, config, weights and limits returns the same version. Raises
    ValueError for a folder that holds no sound model; a package that cannot answer its own example
    is not registered.
    """
    _, config = load_model(export)
    client = connect()
    tags = {WEIGHTS_TAG: config.weights.sha256, CARD_TAG: sha256_of(export / CONFIG_FILE)}
    tags[LIMITS_TAG] = settings.limits.text()
    known = _known_version(client, settings.model, run_id, tags)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory() as folder:
        uri = _logged(client, Path(folder), export, config, run_id, settings)
    example = mlflow.pyfunc.load_model(uri).predict(input_example())
    if len(example) != 1:
        raise ValueError(f"{export}: the package does not answer its own example")
    made = mlflow.register_model(uri, settings.model, tags=tags)
    return int(made.version)


def is_as_packaged(version: int, settings: PackageSettings) -> bool:
    """Whether a version holds the limits that the settings say now."""
    tags = connect().get_model_version(settings.model, str(version)).tags
    return bool(tags.get(LIMITS_TAG) == settings.limits.text())


def fetch(uri: str, into: Path) -> Path:
    """`models:/NAME@champion` or `models:/NAME/3` -> the folder inside `into` that Predictor.load
    takes."""
    connect()
    into.mkdir(parents=True, exist_ok=True)
    return Path(
        mlflow.artifacts.download_artifacts(
            f"{uri.rstrip('/')}/artifacts/model", dst_path=str(into)
        )
    )


def input_example() -> pd.DataFrame:
    """One drawn face, which is nobody's: a person's photo has no place in a package."""
    rng = np.random.default_rng(0)
    photo = encode_face(sample_photo(sample_person(rng), rng, clean=True), 200)
    return pd.DataFrame({PHOTO: [base64.b64encode(photo).decode()]})


def signature() -> ModelSignature:
    """A photo or an aligned face a row, and a face's landmarks; three switches; what comes out is
    JSON, described in docs/serve.md."""
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, name, required=False) for name in (PHOTO, FACE)
    ]
    columns.append(ColSpec(Array(DataType.double), LANDMARKS, required=False))
    switches = {"all_faces": False, "explain": False, "flip": True}
    return ModelSignature(
        inputs=Schema(columns),
        params=ParamSchema(
            [ParamSpec(name, DataType.boolean, default) for name, default in switches.items()]
        ),
    )


def pinned_requirements() -> list[str]:
    """REQUIREMENTS as installed here, without the build's own mark (+cpu), which no index knows."""
    return [f"{name}=={installed(name).partition('+')[0]}" for name in REQUIREMENTS]


def _known_version(
    client: MlflowClient, model: str, run_id: str, tags: dict[str, str]
) -> int | None:
    found = client.search_model_versions(f"name = '{model}' and run_id = '{run_id}'")
    same = [int(entry.version) for entry in found if tags.items() <= entry.tags.items()]
    return max(same, default=None)


def _logged(
    client: MlflowClient,
    folder: Path,
    export: Path,
    config: ModelConfig,
    run_id: str,
    settings: PackageSettings,
) -> str:
    """Lays the package's files out in `folder` and logs them as a model of the run; its address."""
    model, limits, code = folder / "model", folder / "limits.json", folder / "visage"
    model.mkdir()
    for name in (CONFIG_FILE, config.weights.file, REFERENCE_FILE):
        if (export / name).is_file():
            shutil.copyfile(export / name, model / name)
    limits.write_text(settings.limits.text(), encoding="utf-8")
    shutil.copytree(Path(visage.__path__[0]), code, ignore=shutil.ignore_patterns("__pycache__"))
    contents: dict[str, Any] = {
        "python_model": str(ANSWERER),
        "artifacts": {"model": str(model), "limits": str(limits)},
        "code_paths": [str(code)],
        "signature": signature(),
        "input_example": input_example(),
        "pip_requirements": pinned_requirements(),
    }
    # The run's own experiment, whichever is active; and the run's status stays as it is, open or
    # finished.
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=config.name, source_run_id=run_id)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"mlflow\.")  # it uses what pandas 3 deprecates
        info = Model.log(None, mlflow.pyfunc, model_id=logged.model_id, run_id=run_id, **contents)
    return str(info.model_uri)
