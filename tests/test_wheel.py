"""The wheel, installed with its base dependencies alone into an empty environment, answers a
photo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from tests.imports import REPOSITORY
from visage.synthetic import encode_face, sample_person, sample_photo

MAX_INSTALLED_BYTES = 300_000_000
ABSENT = ("torch", "pandas", "pyarrow", "matplotlib", "scipy", "fastapi", "stages", "flows")
ANSWER = f"""
import json, sys
from importlib.util import find_spec
import visage
[face] = visage.load().predict(sys.argv[1])
found = [name for name in {ABSENT} if find_spec(name) or name in sys.modules]
print(json.dumps([face.value, repr(face), found, visage.__file__]))
"""


def uv(*arguments: object) -> str:
    command = [sys.executable, "-m", "uv", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode and any(word in done.stderr for word in ("error sending request", "dns")):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--no-build-isolation", "--python", sys.executable, "-o", folder, ".")
    [path] = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_is_the_library_with_its_models(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0].partition("-")[0] for name in names}
    assert tops == {"visage"}
    assert wheel.stat().st_size < 20_000_000
    for needed in ("py.typed", "released/default.txt", "released/tiny-utkface-coral/model.onnx"):
        assert f"visage/{needed}" in names
    assert any(name.startswith("visage/detection/mtcnn_onnx/") for name in names)


@pytest.mark.slow
def test_the_base_install_is_small_and_answers_a_photo(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    uv("venv", "--python", sys.executable, environment)
    uv("pip", "install", "--python", python, wheel)

    installed = [path for path in environment.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in installed) < MAX_INSTALLED_BYTES

    rng = np.random.default_rng(0)
    photo = tmp_path / "face.jpg"
    photo.write_bytes(encode_face(sample_photo(sample_person(rng), rng, clean=True), 200))
    command = [python, "-I", "-c", ANSWER, photo]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value, text, found, file = json.loads(done.stdout)
    assert found == []
    assert Path(file).is_relative_to(environment)
    assert 0 < value < 100
    assert text.startswith(f"{value:.1f} years (")
