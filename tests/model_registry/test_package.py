"""The package: what it holds, that it predicts anywhere, that it is registered once."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from model_registry.mlflow_client import load_package
from model_registry.package import (
    PackageSettings,
    carried_files,
    fetch,
    input_example,
    package,
    pinned_requirements,
)
from stages.settings import load_section
from tests.conftest import REPOSITORY
from tests.imports import closure, module_file
from tests.model_registry.served import SETTINGS, Store, package_folder, synthetic_photos
from tests.small_model import small_model
from visage.inference.loading import load
from visage.model_config import CalibrationConfig, ModelConfig
from visage.weights import load_model

DISTRIBUTION = {
    "PIL": "pillow",
    "facenet_pytorch": "facenet-pytorch",
}  # where it is not called as it is imported
ALONE = """
import json, sys
FORBIDDEN = "dvc prefect ray great_expectations stages flows model_registry tests".split()
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} is not on this machine")
sys.meta_path.insert(0, Refuse())
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
import visage
[document] = model.predict(model.input_example, params={"explain": True})
[face] = document["faces"]
found = {"visage": list(visage.__path__), "value": face["value"], "model": document["model"]}
print(json.dumps(found))
"""


def test_it_predicts_elsewhere_without_dvc_prefect_ray_and_this_repository(
    store: Store, tmp_path: Path
) -> None:
    """In another folder, with its own copy of visage and only the libraries that it asks for."""
    folder = package_folder(store)
    command = [sys.executable, "-c", ALONE, str(folder)]
    environment = {name: value for name, value in store.environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [Path(path) for path in found["visage"]] == [folder / "code" / "visage"]
    assert found["model"]["version"] == str(store.version)
    [result] = load(store.export, runtime="torch").predict_many(synthetic_photos(1, 200))
    assert found["value"] == pytest.approx(result.faces[0].value, abs=1e-6)


def test_nothing_in_it_is_pickled(store: Store) -> None:
    """Neither by name, nor by content: protocol 2 and later begin with 0x80, torch's zip files hold
    a data.pkl."""
    files = [path for path in package_folder(store).rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds <= {".py", ".json", ".yaml", ".txt", ".safetensors", ".onnx", ".md", ""}, kinds
    assert len(files) > 25
    for path in files:
        assert not path.read_bytes().startswith(b"\x80"), path
        assert not zipfile.is_zipfile(path), path


def test_it_carries_no_cache_no_test_and_of_visage_what_predictions_import(store: Store) -> None:
    folder = package_folder(store)
    assert [path.name for path in (folder / "code").iterdir()] == ["visage"]
    assert {path.name for path in (folder / "artifacts" / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    code = folder / "code" / "visage"
    carried = {path.relative_to(code) for path in code.rglob("*") if path.is_file()}
    assert carried == set(carried_files())

    # The same by another reader of imports. Packages whose __init__.py is only a docstring are not
    # in its answer, and it does not follow the detector's lazy imports.
    modules = closure(REPOSITORY, "model_registry.served_model")[0]
    modules |= closure(REPOSITORY, "visage.inference.loading")[0]
    modules |= closure(REPOSITORY, "visage.detection.mtcnn")[0]
    modules |= closure(REPOSITORY, "visage.detection.align")[0]
    modules -= {"model_registry.served_model"}
    files = {module_file(REPOSITORY, module) for module in modules}
    expected = {file.relative_to(REPOSITORY / "visage") for file in files if file is not None}
    networks = {file.name for file in carried if file.parent.name == "mtcnn_onnx"}
    assert networks == {"propose.onnx", "refine.onnx", "output.onnx", "LICENSE.md"}
    code_files = {file for file in carried if file.suffix == ".py"}
    assert {file for file in code_files if file.name != "__init__.py"} == {
        file for file in expected if file.name != "__init__.py"
    }
    unused = ("synthetic", "training", "baselines", "dedup", "export")
    assert not {file.parts[0] for file in carried} & set(unused)


def test_requirements_are_pinned_and_are_what_a_prediction_imports(store: Store) -> None:
    written = (package_folder(store) / "requirements.txt").read_text().splitlines()
    assert written == pinned_requirements()
    assert all(re.fullmatch(r"[a-z-]+==[0-9.]+", line) for line in written), written
    modules = (
        "visage.inference.photos",
        "visage.detection.mtcnn",
        "visage.detection.align",
        "visage.detection.image_io",
        "visage.explain.score_map",
    )
    needed = set().union(
        *(closure(REPOSITORY, module)[1] for module in (*modules, "model_registry.served_model"))
    )
    assert {DISTRIBUTION.get(name, name) for name in needed} <= {
        line.partition("=")[0] for line in written
    }


def test_signature_and_example_say_how_to_ask(store: Store) -> None:
    info = mlflow.models.get_model_info(str(package_folder(store)))
    assert [(column.name, column.required) for column in info.signature.inputs] == [
        ("photo", False),
        ("face", False),
        ("landmarks", False),
    ]
    switches = {switch.name: switch.default for switch in info.signature.params}
    assert switches == {"all_faces": False, "explain": False, "flip": True}
    pd.testing.assert_frame_equal(
        load_package(str(package_folder(store))).input_example, input_example()
    )


def test_it_belongs_to_its_run_whose_status_stays(connected: Store) -> None:
    client = mlflow.MlflowClient()
    version = client.get_model_version(SETTINGS.model, str(connected.version))
    run = client.get_run(connected.run_id)
    assert version.run_id == connected.run_id
    assert run.info.status == "RUNNING"
    assert (
        client.get_logged_model(version.source.removeprefix("models:/")).experiment_id
        == run.info.experiment_id
    )


def test_it_is_registered_once_for_a_run_and_again_for_another_run_or_calibration(
    connected: Store, tmp_path: Path
) -> None:
    assert package(connected.export, connected.run_id, SETTINGS) == connected.version
    calibration = CalibrationConfig(temperature=1.1, mass=0.8, offset=0.5, num_faces=100, flip=True)
    again = small_model(tmp_path / "again", calibration=calibration)
    assert load_model(again)[1].weights.sha256 == load_model(connected.export)[1].weights.sha256
    calibrated = package(again, connected.run_id, SETTINGS)
    assert calibrated > connected.version
    client = mlflow.MlflowClient()
    run = client.create_run(client.get_run(connected.run_id).info.experiment_id)
    assert package(connected.export, run.info.run_id, SETTINGS) > calibrated
    assert len(client.search_model_versions(f"name = '{SETTINGS.model}'")) == 3


def test_fetch_gives_the_folder_that_was_packaged(connected: Store, tmp_path: Path) -> None:
    reference = connected.export / "reference.json"
    folder = fetch(f"models:/{SETTINGS.model}@champion", tmp_path / "champion")
    assert tmp_path in folder.parents
    for path in folder.iterdir():
        assert path.read_bytes() == (connected.export / path.name).read_bytes()
    assert not reference.exists()
    assert fetch(f"models:/{SETTINGS.model}/{connected.version}", tmp_path / "one").is_dir()
    photos = synthetic_photos(1)
    expected = load(connected.export, runtime="torch").predict(photos[0])[0]
    found = load(folder, runtime="torch").predict(photos[0])[0]
    assert np.array_equal(found.distribution, expected.distribution)


def test_the_training_faces_summary_travels_where_there_is_one(
    connected: Store, tmp_path: Path
) -> None:
    export = small_model(tmp_path / "export", name="summarised")
    (export / "reference.json").write_text('{"count": 3}')
    (export / "model.onnx").write_bytes(b"not needed for predictions")
    version = package(export, connected.run_id, dataclasses.replace(SETTINGS, model="summarised"))
    folder = fetch(f"models:/summarised/{version}", tmp_path / "fetched")
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "reference.json",
    }


def test_a_damaged_folder_is_refused_and_not_registered(connected: Store, tmp_path: Path) -> None:
    export = small_model(tmp_path / "export")
    with (export / "model.safetensors").open("ab") as file:
        file.write(b"more")
    before = len(mlflow.MlflowClient().search_model_versions())
    with pytest.raises(ValueError, match="truncated or was edited"):
        package(export, connected.run_id, SETTINGS)
    with pytest.raises(ValueError, match=r"no config"):
        package(tmp_path, connected.run_id, SETTINGS)
    assert len(mlflow.MlflowClient().search_model_versions()) == before


def test_settings_come_from_params_yaml_and_are_checked() -> None:
    settings = load_section(REPOSITORY / "params.yaml", "package", PackageSettings)
    assert settings.limits.max_request_bytes > settings.limits.max_photo_bytes * 4 / 3
    with pytest.raises(ValueError, match="max_photos is 0"):
        dataclasses.replace(settings, max_photos=0)


def test_the_config_in_the_package_is_the_export_s(store: Store) -> None:
    config = ModelConfig.read(package_folder(store) / "artifacts" / "model" / "config.json")
    assert config == load_model(store.export)[1]


def test_a_loaded_package_leaves_the_path_of_modules_as_it_was(store: Store) -> None:
    """Else a process that is spawned later imports the package's part of visage."""
    before = list(sys.path)
    load_package(str(package_folder(store)))
    assert sys.path == before
