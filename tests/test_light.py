"""The answering path is light: `import visage` imports nothing heavy, and a photo is answered where
the libraries of training, tables and plots cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import visage
from tests.imports import REPOSITORY
from visage.synthetic import encode_face, sample_person, sample_photo

HEAVY = (
    "torch",
    "torchvision",
    "facenet_pytorch",
    "pandas",
    "pyarrow",
    "matplotlib",
    "scipy",
    "sklearn",
    "mlflow",
    "prefect",
    "ray",
    "yaml",
    "onnx",
)

ANSWER = """
import json
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in json.loads(sys.argv[2]):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Absent())
import visage

[face] = visage.load().predict(sys.argv[1])
quick = visage.load(num_threads=2).predict(sys.argv[1], flip=False)
quick.draw()
print(json.dumps({"value": face.value, "crops": len(visage.align(sys.argv[1]))}))
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A drawn face."""
    rng = np.random.default_rng(0)
    path = tmp_path / "face.jpg"
    path.write_bytes(encode_face(sample_photo(sample_person(rng), rng, clean=True), 200))
    return path


def python(*arguments: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_visage_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import visage; print(set(sys.modules) - before)"
    own = {"visage"}
    # What the standard library's own import of typing brings along
    standard = {name for name in eval(python(code)) if name.partition(".")[0] not in own}  # noqa: S307
    assert not {name.partition(".")[0] for name in standard} - sys.stdlib_module_names


def test_every_public_name_is_there_and_no_other() -> None:
    for name in visage.__all__:
        assert getattr(visage, name) is not None
    assert set(visage.__all__) <= set(dir(visage))
    with pytest.raises(AttributeError, match="module 'visage' has no attribute 'predictor'"):
        _ = visage.predictor


def test_a_photo_is_answered_without_torch_tables_and_plots(photo: Path) -> None:
    answer = json.loads(python(ANSWER, str(photo), json.dumps(HEAVY)))
    [face] = visage.load().predict(photo)
    assert answer == {"value": face.value, "crops": 1}


def test_without_torch_its_runtime_says_what_to_install(photo: Path) -> None:
    code = ANSWER.replace("visage.load()", "visage.load(runtime='torch')", 1)
    code = code.replace("[face] =", "try:\n    [face] =", 1).replace(
        "\nquick =",
        "\nexcept ValueError as error:\n    print(error)\n    raise SystemExit\nquick =",
        1,
    )
    assert "pip install 'visage[torch]'" in python(code, str(photo), json.dumps(HEAVY))
