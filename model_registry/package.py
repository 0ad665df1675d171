"""An exported model becomes a registered version: a pyfunc from code, safe to open and complete in
itself.

models/export/ -> a package in MLflow: config and weights (safetensors), the limits of a request,
the code that serves it (model_registry/served_model.py) and the modules of `visage` that this code
imports, signature, an input example of a synthetic face, pinned requirements. It holds no pickle,
and it loads without DVC, Prefect and Ray.
"""

from __future__ import annotations

import base64
import dataclasses
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version as installed
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType

import visage
from model_registry.mlflow_client import connect, load_package
from visage.model_config import CONFIG_FILE, ModelConfig
from visage.server.limits import Limits
from visage.server.tables import FACE, LANDMARKS, PHOTO
from visage.strict import check_positive
from visage.synthetic import encode_face, sample_person, sample_photo
from visage.weights import load_model, sha256_of

REFERENCE_FILE = "reference.json"  # the training faces' summary, against which drift is measured
SERVED_MODEL = Path(__file__).with_name("served_model.py")

# What a prediction imports, and what MLflow's scoring server runs on
REQUIREMENTS = (
    "mlflow",
    "torch",
    "torchvision",
    "facenet-pytorch",
    "onnxruntime",
    "safetensors",
    "numpy",
    "pandas",
    "pillow",
    "fastapi",
    "uvicorn",
)

# Tags of a version. `card` is the old word for the config; renaming the tag would register every
# known version a second time.
WEIGHTS_TAG = "visage.weights_sha256"
CONFIG_TAG = "visage.card_sha256"
LIMITS_TAG = "visage.limits"


@dataclass(frozen=True, kw_only=True)
class PackageSettings:
    """The name under which versions are registered, and what a request to the served model may
    hold: bytes as sent, pixels, photos and aligned faces together, bytes and pixels of each."""

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
        names = [field.name for field in dataclasses.fields(Limits)]
        return Limits(**{name: getattr(self, name) for name in names})


def package(export: Path, run_id: str, settings: PackageSettings) -> int:
    """Registers the model in `export`, made by run `run_id`, as a version of `settings.model`.

    A second call with the same run, config, weights and limits returns the same version. Raises
    ValueError for a folder without a model, or with a damaged one. A package that cannot predict
    its own example is not registered.
    """
    _, config = load_model(export)
    client = connect()
    tags = {
        WEIGHTS_TAG: config.weights.sha256,
        CONFIG_TAG: sha256_of(export / CONFIG_FILE),
        LIMITS_TAG: settings.limits.text(),
    }
    known = _known_version(client, settings.model, run_id, tags)
    if known is not None:
        return known

    with tempfile.TemporaryDirectory() as folder:
        uri = _logged(client, Path(folder), export, config, run_id, settings)
    documents = load_package(uri).predict(input_example())
    if len(documents) != 1:
        raise ValueError(f"{export}: the package does not predict its own example")

    made = mlflow.register_model(uri, settings.model, tags=tags)
    return int(made.version)


def is_as_packaged(version: int, settings: PackageSettings) -> bool:
    """Whether a version holds the limits of the present settings."""
    tags = connect().get_model_version(settings.model, str(version)).tags
    return bool(tags.get(LIMITS_TAG) == settings.limits.text())


def fetch(uri: str, into: Path) -> Path:
    """`models:/NAME@champion` or `models:/NAME/3` -> the folder inside `into` that Model.load
    takes."""
    connect()
    into.mkdir(parents=True, exist_ok=True)
    address = f"{uri.rstrip('/')}/artifacts/model"
    return Path(mlflow.artifacts.download_artifacts(address, dst_path=str(into)))


def input_example() -> pd.DataFrame:
    """One synthetic face: a person's photo has no place in a package."""
    rng = np.random.default_rng(0)
    photo = encode_face(sample_photo(sample_person(rng), rng, clean=True), 200)
    return pd.DataFrame({PHOTO: [base64.b64encode(photo).decode()]})


def signature() -> ModelSignature:
    """A photo or an aligned face a row, and a face's landmarks; three switches. The output is JSON,
    described in docs/serve.md."""
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, name, required=False) for name in (PHOTO, FACE)
    ]
    # An Array would refuse requests in which only some of the faces have landmarks
    anything = AnyType()  # type: ignore[no-untyped-call]
    columns.append(ColSpec(anything, LANDMARKS, required=False))
    switches = {"all_faces": False, "explain": False, "flip": True}
    params = [ParamSpec(name, DataType.boolean, default) for name, default in switches.items()]
    return ModelSignature(inputs=Schema(columns), params=ParamSchema(params))


def pinned_requirements() -> list[str]:
    """REQUIREMENTS as installed here, without the build's local version (+cpu), which no package
    index has."""
    return [f"{name}=={installed(name).partition('+')[0]}" for name in REQUIREMENTS]


def carried_files() -> list[Path]:
    """The files of `visage` that the served model imports, directly or through others, inside
    functions too, and the detector's networks; relative to the folder of the package `visage`."""
    root = Path(visage.__path__[0])
    finder = ModuleFinder(path=[str(root.parent)])
    finder.run_script(str(SERVED_MODEL))

    names = [getattr(module, "__file__", None) for module in finder.modules.values()]
    files = {Path(name) for name in names if name}
    if root / "detection" / "onnx_networks.py" in files:
        files.update((root / "detection" / "mtcnn_onnx").iterdir())
    return sorted(file.relative_to(root) for file in files if file.is_relative_to(root))


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
    """Writes the package's files into `folder`, logs them as a model of the run, and returns its
    address."""
    model = folder / "model"
    limits = folder / "limits.json"
    code = folder / "visage"

    model.mkdir()
    for name in (CONFIG_FILE, config.weights.file, REFERENCE_FILE):
        if (export / name).is_file():
            shutil.copyfile(export / name, model / name)
    limits.write_text(settings.limits.text(), encoding="utf-8")
    for file in carried_files():
        (code / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(visage.__path__[0]) / file, code / file)

    contents: dict[str, Any] = {
        "python_model": str(SERVED_MODEL),
        "artifacts": {"model": str(model), "limits": str(limits)},
        "code_paths": [str(code)],
        "signature": signature(),
        "input_example": input_example(),
        "pip_requirements": pinned_requirements(),
    }

    # The model goes into the run's own experiment, whichever is active, and the run keeps its
    # status, open or finished.
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=config.name, source_run_id=run_id)
    with warnings.catch_warnings():
        # MLflow uses what pandas 3 deprecates.
        warnings.filterwarnings("ignore", module=r"mlflow\.")
        info = Model.log(None, mlflow.pyfunc, model_id=logged.model_id, run_id=run_id, **contents)
    return str(info.model_uri)
