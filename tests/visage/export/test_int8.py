"""The file in 8-bit integers: nearly the float model's predictions, its convolutions in integers,
config and seal intact."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.conftest import REPOSITORY
from tests.small_model import small_config, small_network, some_crops
from visage.data.jpeg import decode_jpeg
from visage.export import onnx_file
from visage.export.int8 import fold_norms, measure_int8, write_int8
from visage.export.onnx_file import export_model, onnx_graph, write_onnx
from visage.export.release import release
from visage.inference.faces import CropPredictor
from visage.inference.onnx_engine import (
    CONFIG_KEY,
    INT8_FILE,
    ONNX_FILE,
    SEAL_KEY,
    load_onnx,
)
from visage.methods import METHODS
from visage.model_config import NetworkConfig
from visage.networks import FaceBatch
from visage.synthetic import encode_face, sample_person, sample_photo
from visage.weights import load_model

CARD = small_config()
RELEASED = REPOSITORY / "visage" / "released"
RANGES = [FaceBatch(some_crops(32, seed), None) for seed in (7, 8)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    export_model(small_network(CARD), CARD, folder, "float16")
    write_int8(*load_model(folder), RANGES, folder / INT8_FILE)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_folding_batch_norm_changes_no_answer() -> None:
    network, crops = small_network(CARD), some_crops(20)
    with torch.no_grad():
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
            norm.bias.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    graph = onnx_graph(network, CARD)
    before = features_of(graph, crops)
    fold_norms(graph)
    onnx.checker.check_model(graph, full_check=True)
    np.testing.assert_allclose(features_of(graph, crops), before, atol=1e-5 * before.max())
    kinds = [node.op_type for node in graph.graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Conv") == 13


def features_of(model: onnx.ModelProto, crops: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["features"], {"crops": crops.numpy()})[0]


def test_answers_follow_those_of_the_float_file(made: Path) -> None:
    """Loosely: random weights make much of little. See the trained model below."""
    crops = some_crops(200)
    rough, fine = (
        CropPredictor(*load_onnx(made / name)).predict_crops(crops, flip=False).value
        for name in (INT8_FILE, ONNX_FILE)
    )
    assert np.corrcoef(rough, fine)[0, 1] > 0.9
    assert np.abs(rough - fine).mean() < 0.3 * fine.std()
    assert np.abs(rough - fine).max() > 1e-3  # else it would not be in int8


def test_a_trained_model_s_answers_stay(tmp_path: Path, rng: np.random.Generator) -> None:
    network, config = load_model(RELEASED / "tiny-utkface-coral")
    drawn = [
        encode_face(sample_photo(sample_person(rng), rng, clean=True), config.alignment.crop_px)
        for _ in range(48)
    ]
    crops = torch.from_numpy(np.stack([decode_jpeg(data) for data in drawn])).permute(0, 3, 1, 2)
    write_int8(network, config, [FaceBatch(crops[:32], None)], tmp_path / INT8_FILE)
    write_onnx(network, config, tmp_path / ONNX_FILE)
    found = measure_int8(tmp_path / INT8_FILE, tmp_path / ONNX_FILE, [FaceBatch(crops, None)])
    assert found.mean_abs_difference < 0.25
    assert found.max_abs_difference < 1.5


def test_differences_are_measured(made: Path) -> None:
    crops = [some_crops(9, seed) for seed in (0, 1)]
    batches = [FaceBatch(each, None) for each in crops]
    found = measure_int8(made / INT8_FILE, made / ONNX_FILE, batches)
    predictors = CropPredictor(*load_model(made)), CropPredictor(*load_onnx(made / INT8_FILE))
    fine, rough = (one.predict_crops(torch.cat(crops), flip=False).value for one in predictors)
    assert found.num_faces == 18
    assert found.max_abs_difference == pytest.approx(np.abs(rough - fine).max(), abs=1e-3)
    assert found.mean_abs_difference == pytest.approx(np.abs(rough - fine).mean(), abs=1e-3)
    assert measure_int8(made / ONNX_FILE, made / ONNX_FILE, batches).max_abs_difference == 0


@pytest.mark.parametrize("method", ["dldl_v2", "coral"])
def test_the_body_is_in_integers_and_the_head_is_not(tmp_path: Path, method: str) -> None:
    shape = NetworkConfig(
        name="vgg-0.125",
        options={"pooling": "hybrid"},
        num_outputs=METHODS[method].head_width(CARD.grid),
    )
    config = small_config(method=method, network=shape)
    network = small_network(config)
    write_int8(network, config, RANGES, tmp_path / INT8_FILE)
    model = onnx.load(tmp_path / INT8_FILE)
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MaxPool"):
            assert {maker[name] for name in node.input} == {"DequantizeLinear"}
        if node.op_type in ("Gemm", "MatMul"):
            assert "DequantizeLinear" not in {maker.get(name) for name in node.input}
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 13
    assert not any(node.op_type in ("Relu", "BatchNormalization") for node in model.graph.node)
    weight_KC = network.head.weight.detach().numpy()
    assert any(
        np.array_equal(value, weight_KC) or np.array_equal(value, weight_KC.T)
        for value in constants(model).values()
    )


def test_weights_are_rounded_to_seven_bits_channel_by_channel(made: Path) -> None:
    """255 x 64 + 255 x 64 is below 2^15: no CPU overflows, so every CPU gives the same numbers."""
    found = constants(onnx.load(made / INT8_FILE))
    graph = onnx_graph(*load_model(made))
    fold_norms(graph)
    exact = {name: value for name, value in constants(graph).items() if value.ndim == 4}
    assert len(exact) == 13
    for name, tensor in exact.items():
        stored, scale = found[f"{name}_quantized"], found[f"{name}_scale"]
        assert (stored.dtype, scale.shape) == (np.int8, (len(tensor),))
        assert np.abs(stored.astype(int)).max() <= 64
        back = stored * scale[:, None, None, None]
        assert (np.abs(back - tensor) <= 0.5001 * scale[:, None, None, None]).all()


def test_a_face_has_the_same_answer_in_any_batch(made: Path) -> None:
    (engine, _), crops = load_onnx(made / INT8_FILE), some_crops(40)
    whole = engine.outputs(crops, None)["value"]
    for count in (1, 2, 7):
        np.testing.assert_allclose(
            engine.outputs(crops[:count], None)["value"], whole[:count], rtol=0, atol=2e-4
        )


def test_the_same_faces_give_the_same_bytes_and_others_do_not(made: Path, tmp_path: Path) -> None:
    darker = [FaceBatch(faces.view_BCHW // 2, None) for faces in RANGES]
    for name, batches in (("again", RANGES), ("other", darker)):
        write_int8(*load_model(made), batches, tmp_path / name)
    assert (tmp_path / "again").read_bytes() == (made / INT8_FILE).read_bytes()
    assert (tmp_path / "other").read_bytes() != (made / INT8_FILE).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "other"]


def test_the_file_is_valid_sealed_and_knows_nothing_of_this_machine(made: Path) -> None:
    model = onnx.load(made / INT8_FILE)
    onnx.checker.check_model(model, full_check=True)
    assert {item.key for item in model.metadata_props} == {CONFIG_KEY, SEAL_KEY}
    assert load_onnx(made / INT8_FILE)[1] == load_model(made)[1]
    data = (made / INT8_FILE).read_bytes()
    for trace in (
        str(Path(onnx_file.__file__).parents[2]),
        sys.prefix,
        "site-packages",
        '.py", line',
        str(made),
    ):
        assert trace.encode() not in data
    assert len(data) < 0.6 * (made / ONNX_FILE).stat().st_size


@pytest.mark.parametrize("where", [0, 5000, -1, -90])
def test_an_edited_or_truncated_file_is_refused(copied: Path, where: int) -> None:
    data = (copied / INT8_FILE).read_bytes()
    edited = bytearray(data)
    edited[where] ^= 4
    for damaged in (bytes(edited), data[: where or 10]):
        (copied / INT8_FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.int8\.onnx.*(edited|seal)"):
            load_onnx(copied / INT8_FILE)


def test_a_file_beside_another_model_s_card_is_refused(copied: Path) -> None:
    text = (copied / "config.json").read_text()
    (copied / "config.json").write_text(
        text.replace('"decode": "expectation"', '"decode": "median"')
    )
    with pytest.raises(ValueError, match="files of two exports"):
        load_onnx(copied / INT8_FILE)


def test_a_release_takes_it_along(made: Path, tmp_path: Path) -> None:
    config = release(made, tmp_path / "age", name="age", terms="none", metrics={})
    crops = some_crops(5)
    released = CropPredictor(*load_onnx(tmp_path / "age" / INT8_FILE))
    assert released.config == config
    made_here = CropPredictor(*load_onnx(made / INT8_FILE))
    values = [one.predict_crops(crops).value for one in (released, made_here)]
    np.testing.assert_array_equal(*values)
