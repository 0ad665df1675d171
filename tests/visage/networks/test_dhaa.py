"""DHAA: published and measured numbers of parameters, its parts, its weights from a ResNet-18, the
same answer for a mirrored crop and a mirrored photo, and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.imports import REPOSITORY
from tests.small_model import small_config, small_network, some_crops, some_landmarks
from tests.visage.inference.test_photos import DetectorOf, a_photo
from visage.data.mirror import mirrored
from visage.detection.align import (
    crop,
    landmarks_in_crop,
    similarity,
    template,
)
from visage.export.onnx_file import export_model, measure_parity
from visage.inference.faces import CropPredictor
from visage.inference.loading import load
from visage.labels import LabelGrid
from visage.model_config import ModelConfig, NetworkConfig
from visage.networks import (
    FaceBatch,
    Network,
    any_options,
    build,
    from_torchvision,
    initialise,
    trunk_of,
)
from visage.networks.dhaa import DHAA
from visage.networks.operations import count_macs

OPTIONS = any_options("dhaa")
SMALL = "dhaa-0.125"
AGES = LabelGrid(minimum=0.0, step=1.0, maximum=100.0)


def on_meta(name: str, **options: Any) -> Network:
    with torch.device("meta"):
        return build(name, OPTIONS | options, 101)


def small(**options: Any) -> DHAA:
    network = build(SMALL, OPTIONS | {"vector": 64} | options, 11)
    initialise(network, torch.Generator().manual_seed(0))
    assert isinstance(network, DHAA)
    return network


def some_faces(count: int, px: int = 32) -> FaceBatch:
    generator = torch.Generator().manual_seed(3)
    view_BCHW = torch.randn(count, 3, px, px, generator=generator)
    return FaceBatch(view_BCHW, torch.rand(count, 5, 2, generator=generator) * px)


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("dhaa", {}, 100_028_082),
        ("dhaa", {"branches": "global"}, 33_645_652),
        ("dhaa", {"branches": "local"}, 33_645_652),
        ("dhaa", {"branches": "global_local"}, 36_205_396),
        ("dhaa", {"branches": "global+local"}, 67_133_699),
        ("dhaa", {"fusion": "fc"}, 99_779_634),
        ("dhaa", {"tail_kernel": 3}, 104_746_674),
        ("dhaa", {"regions": "roi"}, 100_028_082),
        ("dhaa-0.25", {}, 7_038_018),
        ("dhaa-0.1875", {"vector": 64}, 3_756_686),
    ],
)
def test_the_number_of_parameters(name: str, options: dict[str, Any], wanted: int) -> None:
    network = on_meta(name, **options)
    assert sum(weight.numel() for weight in network.parameters()) == wanted


def test_the_heads_that_only_train_are_the_last_ninth_of_a_percent() -> None:
    network = on_meta("dhaa")
    answering = sum(
        weight.numel()
        for name, weight in network.named_parameters()
        if not name.startswith(network.auxiliary_heads)
    )
    assert answering == 99_910_821
    assert network.num_features == 384
    convolutions = [one for one in network.modules() if isinstance(one, nn.Conv2d)]
    assert len(convolutions) == 134
    assert len(network.quantised_modules()) == 133


@pytest.mark.slow  # 400 MB of weights
@pytest.mark.parametrize(
    ("px", "side", "wanted"),
    [(96, "shared", 1.96e9), (112, "shared", 2.95e9), (224, "shared", 10.67e9), (256, 56, 10.85e9)],
)
def test_multiply_accumulates(px: int, side: str | int, wanted: float) -> None:
    network = build("dhaa", OPTIONS | {"region_side": side}, 101)
    assert count_macs(network, px) == pytest.approx(wanted, rel=0.005)


def test_the_shared_map_and_outputs_have_their_shapes() -> None:
    network, faces = small(), some_faces(2, 64)
    maps_BChw = network.forward_features(faces)
    assert maps_BChw.shape == (2, 8, 16, 16)
    outputs = network(faces)
    assert outputs.features_BC.shape == (2, 3 * 64)
    assert outputs.logits_BK.shape == (2, 11)
    assert [logits_BK.shape for logits_BK in outputs.auxiliary] == [(2, 11)] * 9
    assert network.auxiliary_names() == ("g1", "g2", "g3", "l1", "l2", "l3", "c1", "c2", "c3")
    assert torch.equal(outputs.features_BC, network.forward_head(maps_BChw, faces.landmarks_B52))


@pytest.mark.parametrize(
    ("branches", "parts"),
    [
        ("global", ["g1", "g2", "g3"]),
        ("local", ["l1", "l2", "l3"]),
        ("global_local", ["c1", "c2", "c3"]),
        ("local+global_local", ["l1", "l2", "l3", "c1", "c2", "c3"]),
    ],
)
def test_branches_may_be_left_out(branches: str, parts: list[str]) -> None:
    network = small(branches=branches)
    outputs = network(some_faces(2))
    assert list(network.auxiliary_names()) == parts
    assert len(outputs.auxiliary) == len(parts)
    outputs.logits_BK.sum().backward()  # type: ignore[no-untyped-call]
    answering = {
        name: weight
        for name, weight in network.named_parameters()
        if not name.startswith(network.auxiliary_heads)
    }
    assert [name for name, weight in answering.items() if weight.grad is None] == []


def test_the_states_of_the_lstm_are_summed() -> None:
    fusion = small().eval().fusions["g"]
    lstm = nn.LSTM(64, 64)
    state = {f"{name}_l0": value for name, value in fusion.cell.state_dict().items()}
    lstm.load_state_dict(state)
    z_3BV = torch.randn(3, 2, 64)
    states_3BV, _ = lstm(z_3BV)
    torch.testing.assert_close(fusion(z_3BV), states_3BV.sum(0))


def test_the_lstm_starts_from_the_generator_as_torch_s() -> None:
    lstm = small().fusions["l"].cell
    same = small().fusions["l"].cell
    for own, others in zip(lstm.parameters(), same.parameters(), strict=True):
        assert torch.equal(own, others)
    values = torch.cat([weight.flatten() for weight in lstm.parameters()])
    assert 0.95 / 8 < values.abs().max() <= 1 / 8
    assert values.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.02)


# -------------------------------------------------------------------------------
# Weights of a ResNet-18
# -------------------------------------------------------------------------------


def inflated(branches: str = OPTIONS["branches"]) -> tuple[Network, DHAA]:
    """A ResNet-18 with random weights and statistics, and a DHAA that took them."""
    options = OPTIONS | {"branches": branches}
    resnet = build("resnet18-0.125", {}, 11)
    initialise(resnet, torch.Generator().manual_seed(5))
    resnet.train()(some_faces(16))
    network = build(SMALL, options, 11)
    own = from_torchvision(SMALL, options, resnet.state_dict())
    network.load_state_dict(network.state_dict() | own.state)
    missing = {name.partition(".")[0] for name in set(network.state_dict()) - set(own.state)}
    assert missing == {*own.new_parts, "head", "part_heads"}
    assert isinstance(network, DHAA)
    return resnet.eval(), network.eval()


def test_a_resnet_s_features_of_the_whole_face_are_kept_exactly() -> None:
    resnet, network = inflated()
    faces = some_faces(3, 64)
    with torch.inference_mode():
        maps_BChw = network.forward_features(faces)
        for part in ("g1", "l3"):
            seen_BChw = network.trunks[part](network.entries[part](maps_BChw))
            assert torch.equal(seen_BChw, resnet.forward_features(faces)), part


def test_two_equal_inputs_give_what_one_gave() -> None:
    resnet, network = inflated("global_local")
    faces = some_faces(3, 64)
    with torch.inference_mode():
        entered_BChw = network.entries["g2"](network.forward_features(faces))
        twice_BChw = torch.cat([entered_BChw, entered_BChw], dim=1)
        seen_BChw = network.trunks["c2"](twice_BChw)
        wanted_BChw = resnet.forward_features(faces)
    torch.testing.assert_close(seen_BChw, wanted_BChw, atol=1e-4, rtol=1e-4)


def test_its_backbone_is_a_resnet_of_its_share() -> None:
    assert trunk_of("dhaa-0.25") == "resnet18-0.25"
    assert trunk_of("dhaa") == "resnet18"
    assert trunk_of("resnet18-0.25") is None


# -------------------------------------------------------------------------------
# Predictions
# -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> tuple[Network, ModelConfig]:
    options = OPTIONS | {"vector": 64, "template": "five_point_112", "face_scale": 0.75}
    config = small_config(
        network=NetworkConfig(name=SMALL, options=options, num_outputs=101), grid=AGES
    )
    return small_network(config), config


def test_a_mirrored_photo_s_own_face_is_the_mirrored_face(
    model: tuple[Network, ModelConfig],
) -> None:
    """The photo is mirrored and its landmarks with it; then both are aligned."""
    network, config = model
    how = config.alignment
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 9, 9)))
    photo_CHW = nn.functional.interpolate(coarse, size=(120, 120), mode="bicubic")[0].clip(0, 255)
    photo_HWC = photo_CHW.permute(1, 2, 0).numpy().astype(np.uint8)
    aside_52 = template(how.template, 70, 1.0) @ np.array([[0.95, 0.2], [-0.2, 0.95]]) + 25
    landmarks_52 = aside_52 + rng.normal(0, 2, (5, 2))
    mirror_52 = (landmarks_52 * (-1, 1) + (120, 0))[[1, 0, 2, 4, 3]]

    def aligned(photo: Any, landmarks: Any) -> FaceBatch:
        target_52 = template(how.template, how.crop_px, how.face_scale)
        # Symmetric, so that a mirrored face is aligned like the face
        target_52 = (target_52 + (target_52 * (-1, 1) + (how.crop_px, 0))[[1, 0, 2, 4, 3]]) / 2
        matrix_23 = similarity(landmarks, target_52)
        cut_HWC = crop(np.ascontiguousarray(photo), matrix_23, how.crop_px)
        crops_BCHW = torch.from_numpy(cut_HWC.copy()).permute(2, 0, 1)[None]
        return FaceBatch(
            crops_BCHW, torch.from_numpy(landmarks_in_crop(landmarks, matrix_23))[None]
        )

    face = aligned(photo_HWC, landmarks_52)
    own, turned = aligned(photo_HWC[:, ::-1], mirror_52), FaceBatch(*mirrored(*face))
    assert own.landmarks_B52 is not None
    torch.testing.assert_close(own.landmarks_B52, turned.landmarks_B52, atol=0.05, rtol=0)
    assert (own.view_BCHW.int() - turned.view_BCHW.int()).abs().max() <= 3
    predictor = CropPredictor(network, config)

    def value(faces: FaceBatch) -> float:
        return float(predictor.predict_crops(*faces, flip=False).value[0])

    assert value(own) == pytest.approx(value(turned), abs=0.02)
    unmoved = turned._replace(landmarks_B52=face.landmarks_B52)
    assert abs(value(unmoved) - value(turned)) > 0.02


@pytest.mark.parametrize("changes", [{}, {"fusion": "fc", "regions": "roi"}])
def test_onnx_gives_the_same_years(tmp_path: Path, changes: dict[str, Any]) -> None:
    options = OPTIONS | {"vector": 64} | changes
    network_config = NetworkConfig(name=SMALL, options=options, num_outputs=101)
    config = small_config(network=network_config, grid=AGES)
    network = small_network(config)
    export_model(network, config, tmp_path, "float32")
    batches = [
        FaceBatch(some_crops(count, count), some_landmarks(count, count)) for count in (1, 3, 7)
    ]
    parity = measure_parity(tmp_path, CropPredictor(network, config), batches)
    assert parity.num_faces == 11
    assert parity.max_abs_difference <= 1e-4


def test_a_photo_has_the_same_years_in_torch_and_in_onnx(
    tmp_path: Path, model: tuple[Network, ModelConfig]
) -> None:
    """From the detector's landmarks on, two faces of one photo at a time and alone."""
    export_model(*model, tmp_path, "float32")
    offsets = ((0, 0), (60, 20))
    years = []
    for runtime in ("torch", "onnx"):
        loaded = load(tmp_path, runtime=runtime, detector=DetectorOf(*offsets))
        years.append([face.value for face in loaded.predict(a_photo())])
    assert len(years[0]) == 2
    assert abs(years[0][0] - years[0][1]) > 0.1
    np.testing.assert_allclose(years[0], years[1], atol=1e-3)


def test_bfloat16_does_not_move_the_regions() -> None:
    """Places are computed with all digits where training computes in bfloat16."""
    network, faces = small().eval(), some_faces(8, 64)
    with torch.inference_mode():
        maps_BChw = torch.rand(8, 8, 16, 16)
        wanted = network.pooling(maps_BChw, faces.landmarks_B52)
        with torch.autocast("cpu", torch.bfloat16):
            found: dict[str, Tensor] = network.pooling(
                maps_BChw.to(torch.bfloat16), faces.landmarks_B52
            )
    for name, region_BChw in wanted.items():
        torch.testing.assert_close(found[name].float(), region_BChw, atol=0.01, rtol=0)


def test_no_other_file_knows_it() -> None:
    """It goes the way that all networks go: elsewhere, docstrings name the paper at most."""
    own = {"visage/networks/__init__.py"}
    naming = set()
    for folder in ("visage", "stages", "flows", "model_registry"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            if "dhaa" in file.read_text(encoding="utf-8"):
                naming.add(str(file.relative_to(REPOSITORY)))
    assert naming == own
