"""The config comes back as it was written, and a model of parts that do not match is
refused."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.small_model import small_config, small_model, small_network
from visage.labels import LabelGrid
from visage.model_config import (
    CONFIG_FILE,
    INTERVAL_MASS,
    WEIGHTS_FILE,
    CalibrationConfig,
    ModelConfig,
    NetworkConfig,
)
from visage.weights import (
    MEANING_KEY,
    build_network,
    load_model,
    save_model,
    sha256_of,
    write_weights,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


def edit(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the config's JSON by hand."""
    document = json.loads((model / CONFIG_FILE).read_text(encoding="utf-8"))
    change(document)
    (model / CONFIG_FILE).write_text(json.dumps(document), encoding="utf-8")


# -------------------------------------------------------------------------------
# Round trips
# -------------------------------------------------------------------------------


def test_config_comes_back_equal(tmp_path: Path) -> None:
    config = small_config(
        name="größer ✓",
        training={"epochs": 3, "loss": {"lambda_": 1.0}, "seconds": None},
        data={"train": {"num_faces": 7}},
        metrics={"val": {"val_mae": 4.25}},
    )

    config.write(tmp_path / "config.json")
    assert ModelConfig.read(tmp_path / "config.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert ModelConfig.from_json(config.to_json(), "x").to_json() == config.to_json()


def test_a_calibration_comes_back_and_needs_no_new_weights(model: Path) -> None:
    _, config = load_model(model)
    calibration = CalibrationConfig(
        temperature=1.25, mass=INTERVAL_MASS, offset=-0.5, num_faces=240, flip=True
    )
    dataclasses.replace(config, calibration=calibration).write(model / CONFIG_FILE)
    loaded = load_model(model)[1]
    assert loaded.calibration == calibration
    assert loaded.meaning() == config.meaning()


def test_whole_numbers_of_a_hand_written_config_are_numbers() -> None:
    document = json.loads(small_config().to_json()) | {
        "grid": {"minimum": 0, "step": 10, "maximum": 100}
    }
    config = ModelConfig.from_json(json.dumps(document), "x")
    assert config == small_config()
    assert isinstance(config.grid.step, float)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 1e-3)])
def test_model_comes_back_with_the_same_weights(
    tmp_path: Path, dtype: Any, tolerance: float
) -> None:
    network = small_network(small_config())
    written = save_model(tmp_path, network, small_config(), dtype)

    loaded, config = load_model(tmp_path)
    assert config == written
    assert (config.weights.dtype, config.weights.num_parameters) == (
        dtype,
        sum(p.numel() for p in network.parameters()),
    )
    assert config.weights.sha256 == sha256_of(tmp_path / WEIGHTS_FILE)

    assert not loaded.training
    for name, value in network.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=tolerance, rtol=tolerance)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    """safetensors orders its notes by a hash, random for every file: one note has one order."""
    network = small_network(small_config())
    for number in range(8):
        save_model(tmp_path / str(number), network, small_config(), "float16")
    assert len({sha256_of(tmp_path / str(number) / WEIGHTS_FILE) for number in range(8)}) == 1


# -------------------------------------------------------------------------------
# Refusals: the weights
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999999])
def test_truncated_weights_are_refused(model: Path, share: float) -> None:
    data = (model / WEIGHTS_FILE).read_bytes()
    (model / WEIGHTS_FILE).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf"{WEIGHTS_FILE}: sha256 .* truncated or was edited"):
        load_model(model)


@pytest.mark.parametrize("place", [8, 1000, -1])
def test_weights_with_one_flipped_bit_are_refused(model: Path, place: int) -> None:
    data = bytearray((model / WEIGHTS_FILE).read_bytes())
    data[place] ^= 1
    (model / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(ValueError, match="truncated or was edited"):
        load_model(model)


@pytest.mark.parametrize("kind", ["cut", "random"])
def test_broken_weights_with_a_matching_checksum_are_refused(model: Path, kind: str) -> None:
    data = (model / WEIGHTS_FILE).read_bytes()
    (model / WEIGHTS_FILE).write_bytes(
        data[: len(data) // 2] if kind == "cut" else os.urandom(2000)
    )
    edit(model, lambda document: document["weights"].update(sha256=sha256_of(model / WEIGHTS_FILE)))
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE}: not a safetensors file"):
        load_model(model)


def test_absent_weights_or_config_are_refused(model: Path, tmp_path: Path) -> None:
    (model / WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match=r"weights that .*config\.json names are missing"):
        load_model(model)
    with pytest.raises(ValueError, match=r"config\.json: no config here"):
        load_model(tmp_path / "nowhere")


def test_weights_of_another_network_are_refused(model: Path) -> None:
    """Another tool's file, without our note, whose checksum was copied into the config."""
    state = load_file(model / WEIGHTS_FILE)
    save_file(
        {name: value for name, value in state.items() if "blocks.4" not in name},
        model / WEIGHTS_FILE,
    )
    edit(model, lambda document: document["weights"].update(sha256=sha256_of(model / WEIGHTS_FILE)))

    with pytest.raises(
        ValueError, match=r"not the weights of the config's network NetworkConfig\(name='tiny'"
    ):
        load_model(model)


def test_config_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    grid = LabelGrid(minimum=1.0, step=0.4, maximum=5.0)
    other = small_model(tmp_path / "other", grid=grid, quantity="attractiveness", unit="points")
    (model / CONFIG_FILE).write_bytes((other / CONFIG_FILE).read_bytes())

    with pytest.raises(ValueError, match="truncated or was edited"):
        load_model(model)
    edit(model, lambda document: document["weights"].update(sha256=sha256_of(model / WEIGHTS_FILE)))
    with pytest.raises(
        ValueError, match="trained with quantity age, the config says attractiveness"
    ):
        load_model(model)


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("grid", {"minimum": 1.0, "maximum": 101.0}),
        ("grid", {"step": 1.0, "maximum": 10.0}),
        ("normalise", {"mean": [0.5, 0.5, 0.5]}),
        ("alignment", {"face_scale": 1.4}),
        ("alignment", {"crop_px": 224}),
        ("network", {"options": {"pooling": "gap"}}),
        ("detector", {"min_face_px": 40}),
    ],
)
def test_config_edited_since_is_refused(model: Path, section: str, changes: dict[str, Any]) -> None:
    """Another grid of as many labels, other preprocessing: only the weights' note can show it."""
    edit(model, lambda document: document[section].update(changes))
    with pytest.raises(
        ValueError, match=f"trained with {section} .*take the config that came with them"
    ):
        load_model(model)


def test_names_terms_and_figures_may_be_edited(model: Path) -> None:
    edit(
        model, lambda document: document.update(name="released", terms="none", metrics={"mae": 4.0})
    )
    assert load_model(model)[1].name == "released"


# -------------------------------------------------------------------------------
# Refusals: the config
# -------------------------------------------------------------------------------

GOOD = json.loads(small_config().to_json())
CALIBRATION = {"temperature": 1.25, "mass": 0.8, "offset": -0.5, "num_faces": 240, "flip": True}


@pytest.mark.parametrize("text", ["", "{", '{"format": 1,}', b"\xff\xfe", b'{"name": "\xff"}'])
def test_text_that_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"the config: not valid JSON"):
        ModelConfig.from_json(text, "the config")


@pytest.mark.parametrize(
    "document", [[], "config", 3, {}, {"format": 4}, GOOD | {"format": 4}, GOOD | {"format": "3"}]
)
def test_other_documents_are_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="the config: not a config of format 3"):
        ModelConfig.from_json(json.dumps(document), "the config")


def as_format_2(model: Path, pooling: str) -> None:
    """Makes a model folder what the version before wrote: card.json, another word for the options,
    in the weights' own note too."""
    state = load_file(model / WEIGHTS_FILE)
    with safe_open(model / WEIGHTS_FILE, "pt") as file:
        note = json.loads(file.metadata()[MEANING_KEY])
    document = json.loads((model / CONFIG_FILE).read_text(encoding="utf-8"))
    for place in (note, document):
        network = place["network"]
        place["network"] = {
            "name": network["name"],
            "pooling": pooling,
            "num_outputs": network["num_outputs"],
        }

    save_file(state, model / WEIGHTS_FILE, metadata={MEANING_KEY: json.dumps(note)})
    document["format"] = 2
    document["weights"]["sha256"] = sha256_of(model / WEIGHTS_FILE)
    (model / "card.json").write_text(json.dumps(document), encoding="utf-8")
    (model / CONFIG_FILE).unlink()


def test_a_model_of_format_2_is_read(model: Path) -> None:
    network, config = load_model(model)
    as_format_2(model, "hybrid")
    older_network, older = load_model(model)
    assert older == dataclasses.replace(config, weights=older.weights)
    for name, value in network.state_dict().items():
        assert torch.equal(older_network.state_dict()[name], value)

    text = (model / "card.json").read_text(encoding="utf-8").replace('"hybrid"', '"gap"')
    (model / "card.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"trained with network .*hybrid.*, the config says .*gap"):
        load_model(model)


def test_the_pooling_of_vgg16_was_no_choice() -> None:
    network = {"name": "vgg16", "pooling": "flatten", "num_outputs": 11}
    config = ModelConfig.from_json(json.dumps(GOOD | {"format": 2, "network": network}), "x")
    assert config.network == NetworkConfig(name="vgg16", options={}, num_outputs=11)


@pytest.mark.parametrize(
    "network", [None, "tiny", {"name": "tiny"}, {"name": "tiny", "pooling": 3, "num_outputs": "1"}]
)
def test_a_format_2_that_is_not_certain_is_refused(network: Any) -> None:
    with pytest.raises(ValueError, match=r"the config: config\.network"):
        ModelConfig.from_json(json.dumps(GOOD | {"format": 2, "network": network}), "the config")


def test_a_config_from_before_calibration_is_refused_and_its_remedy_works(model: Path) -> None:
    as_format_2(model, "hybrid")
    document = json.loads((model / "card.json").read_text(encoding="utf-8"))
    document["format"] = 1
    del document["calibration"]
    (model / "card.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r'config of format 1, .*set "format": 2 and add "calibration": null'
    ):
        load_model(model)

    document |= {"format": 2, "calibration": None}
    (model / "card.json").write_text(json.dumps(document), encoding="utf-8")
    assert load_model(model)[1].calibration is None


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(ModelConfig) if field.name != "format"]
)
def test_missing_field_is_refused_by_name(field: str) -> None:
    document = {name: value for name, value in GOOD.items() if name != field}
    with pytest.raises(
        ValueError, match=f"the config: config: missing key '{field}'; export the model again"
    ):
        ModelConfig.from_json(json.dumps(document), "the config")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mood": "good"}, "config: unknown key 'mood'"),
        ({"grid": GOOD["grid"] | {"steps": 1}}, r"config\.grid: unknown key 'steps'"),
        (
            {"alignment": {"crop_px": 96}},
            r"config\.alignment: missing key 'face_scale'",
        ),
        ({"grid": [0, 1, 100]}, r"config\.grid: expected a section with keys, found \[0, 1, 100\]"),
        ({"grid": {"minimum": 0, "step": 7, "maximum": 100}}, "grid: label grid 0.0:7.0:100.0"),
        ({"grid": {"minimum": 0, "step": 1, "maximum": float("nan")}}, "grid: label grid"),
        ({"grid": {"minimum": 0, "step": 1, "maximum": float("inf")}}, "grid: label grid"),
        (
            {"grid": {"minimum": "0", "step": 10, "maximum": 100}},
            r"config\.grid\.minimum: expected float, found '0'",
        ),
        (
            {"network": GOOD["network"] | {"num_outputs": 11.0}},
            r"config\.network\.num_outputs: expected int, found 11\.0",
        ),
        (
            {"network": GOOD["network"] | {"num_outputs": True}},
            r"config\.network\.num_outputs: expected int, found True",
        ),
        (
            {"network": GOOD["network"] | {"options": "hybrid"}},
            "expected keys with values, found 'hybrid'",
        ),
        ({"decode": "mode"}, "decode 'mode' is unknown; known: expectation, median, argmax"),
        (
            {"normalise": {"mean": [0.5, 0.5], "std": [1, 1, 1]}},
            r"config\.normalise\.mean: expected 3 values, found 2",
        ),
        (
            {"normalise": {"mean": [0.5, 0.5, "a"], "std": [1, 1, 1]}},
            r"config\.normalise\.mean\[2\]: expected float, found 'a'",
        ),
        (
            {"weights": GOOD["weights"] | {"dtype": "int8"}},
            r"config\.weights\.dtype: 'int8' is not one of",
        ),
        (
            {"weights": GOOD["weights"] | {"file": "../other/model.safetensors"}},
            "must be a name beside the config",
        ),
        ({"name": None}, r"config\.name: expected str, found None"),
        (
            {"calibration": CALIBRATION | {"temperature": 0.0}},
            "calibration: temperature 0.0, offset -0.5: the first must",
        ),
        (
            {"calibration": CALIBRATION | {"offset": float("nan")}},
            "calibration: temperature 1.25, offset nan: the first",
        ),
        ({"calibration": CALIBRATION | {"mass": 0.9}}, "calibration: mass 0.9 is not 0.8"),
        (
            {"calibration": CALIBRATION | {"num_faces": 2.5}},
            r"config\.calibration\.num_faces: expected int, found 2\.5",
        ),
        (
            {"calibration": {"temperature": 1.0}},
            r"config\.calibration: missing key 'flip'",
        ),
        ({"calibration": 1.0}, r"config\.calibration: expected a section with keys, found 1\.0"),
        ({"training": []}, r"config\.training: expected keys with values, found \[\]"),
    ],
)
def test_odd_value_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"the config: {message}|the config: .*{message}"):
        ModelConfig.from_json(json.dumps(GOOD | changes), "the config")


def test_half_written_files_never_replace_complete_ones(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}

    def die_halfway(_state: Any, path: Path, **_rest: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("visage.weights.save_file", die_halfway)
    with pytest.raises(OSError, match="disk full"):
        write_weights(small_network(small_config(), seed=1), model / WEIGHTS_FILE, "float32")
    assert {name: (model / name).read_bytes() for name in before} == before
    load_model(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"grid": {"minimum": 0, "step": 1, "maximum": 100}},
            "11 outputs, the label grid 0.0:1.0:100.0 needs 101",
        ),
        (
            {"network": GOOD["network"] | {"num_outputs": 101}},
            "101 outputs, the label grid .* needs 11",
        ),
        (
            {"network": GOOD["network"] | {"name": "vgg"}},
            "network 'vgg' is unknown; known: thin, tiny",
        ),
        (
            {"network": GOOD["network"] | {"name": "vgg16"}},
            "network 'vgg16' has no option 'pooling'; its options: none",
        ),
        (
            {"network": GOOD["network"] | {"options": {"pooling": "max"}}},
            "network 'tiny': pooling is 'max'; give hybrid or gap",
        ),
        ({"network": GOOD["network"] | {"options": {}}}, "'tiny' needs the option 'pooling'"),
        ({"method": "magic"}, "method 'magic' is unknown; known: dldl_v2"),
        (
            {"format": 2, "network": {"name": "tiny", "pooling": 3, "num_outputs": 11}},
            "network 'tiny': pooling is 3; give hybrid or gap",
        ),
    ],
)
def test_a_network_that_cannot_be_the_config_s_is_refused_when_it_is_built(
    changes: dict[str, Any], message: str
) -> None:
    """Not when the config is read: an ONNX file is run where no network can be built."""
    config = ModelConfig.from_json(json.dumps(GOOD | changes), "the config")
    with pytest.raises(ValueError, match=f"the config: .*{message}"):
        build_network(config, "the config")
