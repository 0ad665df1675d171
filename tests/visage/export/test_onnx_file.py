"""The exported files: both give the same predictions, nothing of this machine is in them, and
foreign files are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from tests.command import refused, visage
from tests.small_model import CROP_PX, small_config, small_network, some_crops
from visage.explain.score_map import pooled_features
from visage.export import onnx_file
from visage.export.onnx_file import export_model, measure_parity, stamped
from visage.export.release import copy_with_config, release
from visage.inference.faces import CropPredictor
from visage.inference.onnx_engine import CONFIG_KEY, ONNX_FILE, SEAL_KEY, load_onnx, seal
from visage.labels import DECODERS
from visage.methods import METHODS
from visage.model_config import INTERVAL_MASS, CalibrationConfig, ModelConfig, NetworkConfig
from visage.networks import FaceBatch
from visage.weights import DTYPES, load_model

CARD = small_config()
# Years; the small model spreads each face over the complete grid, where float32 shows most
TOLERANCE = 5e-4


def predictor_of(folder: Path) -> CropPredictor:
    """A predictor that runs a folder's ONNX file."""
    return CropPredictor(*load_onnx(folder / ONNX_FILE))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Storage type -> exported folder; an export takes a second or two, so most tests share
    these."""
    folders = {dtype: tmp_path_factory.mktemp(dtype) for dtype in DTYPES}
    for dtype, folder in folders.items():
        export_model(small_network(CARD), CARD, folder, dtype)  # type: ignore[arg-type]
    return folders


@pytest.fixture(params=sorted(DTYPES))
def exported(request: pytest.FixtureRequest, both: dict[str, Path]) -> Path:
    return both[request.param]


@pytest.fixture
def copied(both: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(both["float16"], tmp_path / "copy"))


def test_both_engines_answer_alike_at_any_batch_size(exported: Path) -> None:
    in_torch, in_onnx = CropPredictor(*load_model(exported)), predictor_of(exported)
    assert in_onnx.config == in_torch.config
    crops = some_crops(40)
    for count in (1, 2, 3, 40):
        ours, theirs = (engine.predict_crops(crops[:count]) for engine in (in_torch, in_onnx))
        for name in ("value", "std", "low", "high"):
            np.testing.assert_allclose(
                getattr(theirs, name), getattr(ours, name), rtol=0, atol=10 * TOLERANCE
            )
        np.testing.assert_allclose(theirs.value, ours.value, rtol=0, atol=TOLERANCE)


def test_a_calibrated_model_answers_alike_on_either_engine_and_its_graph_stays_raw(
    both: dict[str, Path], tmp_path: Path
) -> None:
    """Another config as a file and in the graph; the README's recipe on the graph's output gives
    the predictor's numbers."""
    folder, crops = both["float16"], some_crops(9)
    known = CalibrationConfig(
        temperature=0.7, mass=INTERVAL_MASS, offset=-3.0, num_faces=100, flip=True
    )
    copy_with_config(
        folder, tmp_path, dataclasses.replace(load_model(folder)[1], calibration=known)
    )
    in_torch, in_onnx = (
        one.predict_crops(crops)
        for one in (CropPredictor(*load_model(tmp_path)), predictor_of(tmp_path))
    )
    plain = CropPredictor(*load_model(folder)).predict_crops(crops)
    for name in ("value", "std", "low", "high"):
        np.testing.assert_allclose(
            getattr(in_onnx, name), getattr(in_torch, name), rtol=0, atol=10 * TOLERANCE
        )
    np.testing.assert_allclose(in_onnx.probabilities, in_torch.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(in_torch.value, plain.value)
    assert np.abs(in_torch.std - plain.std).min() > 100 * TOLERANCE
    engines = [load_onnx(each / ONNX_FILE)[0] for each in (folder, tmp_path)]
    raw, stamped_again = (engine.outputs(crops, None) for engine in engines)
    for name in raw:
        np.testing.assert_array_equal(raw[name], stamped_again[name])
    mirror_BK = engines[1].outputs(crops.flip(3), None)["probabilities"]
    p_BK = (stamped_again["probabilities"].astype(np.float64) + mirror_BK) / 2
    p_BK = p_BK ** (1 / 0.7)
    p_BK /= p_BK.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(in_onnx.probabilities, p_BK, rtol=0, atol=1e-6)


def test_a_reader_of_the_file_alone_gets_the_same_numbers(exported: Path) -> None:
    """uint8 crops in, probabilities, values and features out: no normalisation, softmax or decoding
    left to retype."""
    session = onnxruntime.InferenceSession(
        str(exported / ONNX_FILE), providers=["CPUExecutionProvider"]
    )
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("crops", "tensor(uint8)", ["batch", 3, CROP_PX, CROP_PX])
    ]
    crops = some_crops(7)
    assert [output.name for output in session.get_outputs()] == [
        "probabilities",
        "value",
        "features",
    ]
    probabilities, value, features = session.run(None, {"crops": crops.numpy()})
    expected = CropPredictor(*load_model(exported)).predict_crops(crops, flip=False)
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(value, expected.value, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        features, pooled_features(*load_model(exported), crops), rtol=0, atol=1e-4
    )
    assert (
        json.loads(session.get_modelmeta().custom_metadata_map[CONFIG_KEY])["grid"]["maximum"]
        == 100
    )


def test_the_file_is_valid_and_knows_nothing_of_this_machine(exported: Path) -> None:
    model = onnx.load(exported / ONNX_FILE)
    onnx.checker.check_model(model, full_check=True)
    data = (exported / ONNX_FILE).read_bytes()
    for trace in (
        str(Path(onnx_file.__file__).parents[2]),
        sys.prefix,
        "site-packages",
        '.py", line',
    ):
        assert trace.encode() not in data
    assert {item.key for item in model.metadata_props} == {CONFIG_KEY, SEAL_KEY}


def test_both_files_hold_the_same_weights_bit_for_bit(exported: Path) -> None:
    stored = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(exported / ONNX_FILE).graph.initializer
    }
    for name, tensor in load_file(exported / "model.safetensors").items():
        if name.startswith("blocks") and tensor.ndim == 4:
            mine = next(
                v for key, v in stored.items() if key.removesuffix(".half") == f"network.{name}"
            )
            np.testing.assert_array_equal(mine.astype(np.float32), tensor.float().numpy())


def test_half_the_precision_is_half_the_size(both: dict[str, Path]) -> None:
    for name in ("model.safetensors", ONNX_FILE):
        half, whole = ((both[dtype] / name).stat().st_size for dtype in ("float16", "float32"))
        assert half < 0.53 * whole
    assert [
        ModelConfig.read(both[dtype] / "config.json").weights.dtype for dtype in DTYPES
    ] == list(DTYPES)


def test_the_same_model_gives_the_same_bytes(both: dict[str, Path], tmp_path: Path) -> None:
    export_model(small_network(CARD), CARD, tmp_path, "float16")
    for name in ("model.safetensors", "config.json", ONNX_FILE):
        assert (tmp_path / name).read_bytes() == (both["float16"] / name).read_bytes()


def test_every_decoding_rule_is_in_the_graph(tmp_path: Path) -> None:
    crops = some_crops(12)
    for decode in DECODERS:
        config = small_config(decode=decode)
        export_model(small_network(config), config, tmp_path / decode, "float32")
        engine, _ = load_onnx(tmp_path / decode / ONNX_FILE)
        value = engine.outputs(crops, None)["value"]
        expected = (
            CropPredictor(*load_model(tmp_path / decode)).predict_crops(crops, flip=False).value
        )
        np.testing.assert_allclose(value, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_in_the_graph(tmp_path: Path, method: str) -> None:
    width = METHODS[method].head_width(small_config().grid)
    config = small_config(
        method=method,
        network=NetworkConfig(name="tiny", options={"pooling": "hybrid"}, num_outputs=width),
    )
    export_model(small_network(config), config, tmp_path, "float32")
    crops = some_crops(12)
    p_BK, value_B, _ = load_onnx(tmp_path / ONNX_FILE)[0].outputs(crops, None).values()
    expected = CropPredictor(*load_model(tmp_path)).predict_crops(crops, flip=False)
    # Metric regression splits its value between two labels, so that an error of the value, which
    # float32 makes on the whole range of labels, becomes one of the probabilities.
    tolerance = 2e-4 if method.startswith("mr_") else 2e-5
    np.testing.assert_allclose(p_BK, expected.probabilities, rtol=0, atol=tolerance)
    np.testing.assert_allclose(value_B, expected.value, rtol=0, atol=TOLERANCE)
    assert np.ptp(value_B) > 0


def test_parity_is_measured(exported: Path) -> None:
    network = small_network(CARD)
    batches = [FaceBatch(some_crops(9, seed), None) for seed in range(3)]
    parity = measure_parity(exported, CropPredictor(network, CARD), batches)
    assert parity.num_faces == 27
    assert parity.max_abs_difference < TOLERANCE
    is_half = load_model(exported)[1].weights.dtype == "float16"
    assert (parity.max_abs_rounding > 10 * TOLERANCE) == is_half
    if not is_half:
        assert parity.max_abs_rounding == 0
    with torch.no_grad():
        network.head.bias[0] += 2
    shifted = CropPredictor(network, CARD)
    assert measure_parity(exported, shifted, batches).max_abs_rounding > 1


def test_parity_sees_an_onnx_file_of_other_weights(copied: Path) -> None:
    """The config is forged to match, so that only the measurement can tell."""
    network = small_network(CARD, seed=1)
    onnx_file.write_onnx(network, load_model(copied)[1], copied / ONNX_FILE)
    parity = measure_parity(
        copied, CropPredictor(small_network(CARD), CARD), [FaceBatch(some_crops(9), None)]
    )
    assert parity.max_abs_difference > 1


@pytest.mark.parametrize("where", [0, 1, 200, 5000, -1, -90])
def test_an_edited_onnx_file_is_refused(copied: Path, where: int) -> None:
    data = bytearray((copied / ONNX_FILE).read_bytes())
    data[where] ^= 4
    (copied / ONNX_FILE).write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.onnx.*(edited|seal)"):
        load_onnx(copied / ONNX_FILE)


@pytest.mark.parametrize("keep", [0, 1, 50, 10_000, -1, -83])
def test_a_truncated_onnx_file_is_refused(copied: Path, keep: int) -> None:
    data = (copied / ONNX_FILE).read_bytes()
    (copied / ONNX_FILE).write_bytes(data[:keep])
    with pytest.raises(ValueError, match=r"model\.onnx.*truncated"):
        load_onnx(copied / ONNX_FILE)


def test_an_onnx_file_without_a_card_is_refused(copied: Path) -> None:
    """Sealed again after the edit, as only a deliberate hand would."""
    model = onnx.load(copied / ONNX_FILE)
    del model.metadata_props[:]
    body = model.SerializeToString()
    (copied / ONNX_FILE).write_bytes(body + seal(body))
    with pytest.raises(ValueError, match="carries no config"):
        load_onnx(copied / ONNX_FILE)


def test_an_onnx_file_of_another_grid_or_crop_is_refused(copied: Path) -> None:
    model = onnx.load(copied / ONNX_FILE)
    config = load_model(copied)[1]
    finer = dataclasses.replace(config.grid, step=5.0)
    others = [
        dataclasses.replace(
            config, grid=finer, network=dataclasses.replace(config.network, num_outputs=21)
        ),
        dataclasses.replace(config, alignment=dataclasses.replace(config.alignment, crop_px=64)),
    ]
    for other in others:
        (copied / ONNX_FILE).write_bytes(stamped(model, other))
        with pytest.raises(ValueError, match=r"model\.onnx: the graph maps .* its config says"):
            load_onnx(copied / ONNX_FILE)


def test_an_onnx_file_beside_another_model_s_card_is_refused(copied: Path) -> None:
    text = (copied / "config.json").read_text()
    (copied / "config.json").write_text(
        text.replace('"decode": "expectation"', '"decode": "median"')
    )
    with pytest.raises(ValueError, match="files of two exports"):
        load_onnx(copied / ONNX_FILE)
    (copied / "config.json").unlink()
    assert predictor_of(copied).config.decode == "expectation"  # one file alone is a model, too


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_onnx(tmp_path / ONNX_FILE)


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    network = small_network(CARD)
    with torch.no_grad():
        network.blocks[0][1].running_var[0] = 1e6
    with pytest.raises(ValueError, match=r"running_var.*dtype: float32"):
        export_model(network, CARD, tmp_path / "half", "float16")
    assert not (tmp_path / "half").exists()


def test_a_release_says_its_terms_and_answers_alike(exported: Path, tmp_path: Path) -> None:
    released = tmp_path / "released" / "age"
    config = release(exported, released, name="age", terms="research only", metrics={"mae": 4.5})
    assert (config.name, config.terms, config.metrics) == ("age", "research only", {"mae": 4.5})
    assert load_model(released)[1] == predictor_of(released).config == config
    crops = some_crops(5)
    values = [
        one.predict_crops(crops).value
        for one in (CropPredictor(*load_model(exported)), CropPredictor(*load_model(released)))
    ]
    np.testing.assert_array_equal(*values)
    engines = [predictor_of(folder).predict_crops(crops).value for folder in (exported, released)]
    np.testing.assert_array_equal(*engines)


def test_release_from_the_command_line(exported: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"mae": 4.5}')
    words = ["release", exported, tmp_path / "age", "--name", "age", "--terms", "none"]
    assert "model.onnx" in visage(*words, "--metrics", metrics).stdout

    metrics.unlink()
    assert "metrics.json: " in refused(*words, "--metrics", metrics)


def as_format_2(path: Path, config: ModelConfig) -> None:
    """Makes an ONNX file what the version before wrote: its config under another key, no output
    `features`."""
    model = onnx.load(path)
    del model.graph.output[2:]
    document = json.loads(config.to_json()) | {
        "format": 2,
        "network": {"name": "tiny", "pooling": "hybrid", "num_outputs": 11},
    }
    onnx.helper.set_model_props(model, {"visage.card": json.dumps(document)})
    body = model.SerializeToString()
    path.write_bytes(body + seal(body))


def test_a_file_of_format_2_answers_alike_and_cannot_be_observed(copied: Path) -> None:
    crops, expected = some_crops(5), predictor_of(copied)
    as_format_2(copied / ONNX_FILE, expected.config)
    older = predictor_of(copied)
    assert older.config == expected.config
    np.testing.assert_array_equal(
        older.predict_crops(crops).probabilities, expected.predict_crops(crops).probabilities
    )
    with pytest.raises(ValueError, match=r"gives no pooled features .* export the model again"):
        CropPredictor(*load_onnx(copied / ONNX_FILE), observe=lambda _values, _features: None)


def test_faces_are_observed_alike_on_either_engine(exported: Path) -> None:
    crops, seen = some_crops(20), []
    for model in (load_model(exported), load_onnx(exported / ONNX_FILE)):
        heard: list[tuple[np.ndarray, np.ndarray]] = []
        CropPredictor(*model, observe=lambda *both, to=heard: to.append(both)).predict_crops(crops)
        seen.append([np.concatenate(column) for column in zip(*heard, strict=True)])
    (torch_values, torch_features), (onnx_values, onnx_features) = seen
    assert torch_features.shape == (20, 128)
    assert torch_features.std() > 0.01
    np.testing.assert_allclose(onnx_values, torch_values, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(onnx_features, torch_features, rtol=0, atol=1e-4)
