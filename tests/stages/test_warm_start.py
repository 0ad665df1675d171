"""What a training starts from: another model, a file under torchvision's names; what is refused;
and the chain of ancestors."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages import finetune as finetune_stage
from stages.finetune import FinetuneSettings, finetune
from stages.imported_weights import (
    IMAGENET_NORMALISE,
    ImportSettings,
    imported_start,
)
from stages.pretrain import pretrain
from tests.small_faces import (
    ALIGNMENT,
    GRID,
    TINY,
    finetune_settings,
    pretrain_settings,
    some_faces,
    write_faces,
)
from visage.data.face_table import FaceTable
from visage.model_config import CONFIG_FILE, ModelConfig, NormaliseConfig
from visage.networks import FaceBatch, NetworkSettings, build, vgg16
from visage.weights import sha256_of

SMALL_RESNET = NetworkSettings(name="resnet18-0.25", options={})
RESNET = NetworkSettings(name="resnet18", options={})
OTHER_NORMALISE = NormaliseConfig(mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    return write_faces(tmp_path / "faces", some_faces())


def run(
    folder: Path, faces: Path, settings: FinetuneSettings, start: Path, backbone: Path
) -> ModelConfig:
    """The config after a run in `folder`."""
    finetune(
        settings,
        faces=faces,
        backbone=backbone,
        start=start,
        checkpoints=folder / "checkpoints",
        model=folder / "model",
        history=folder / "finetune.csv",
        report=lambda *_: None,
    )
    return ModelConfig.read(folder / "model" / CONFIG_FILE)


def state_before(faces: Path, settings: FinetuneSettings, start: Path) -> dict[str, Tensor]:
    """The weights before the first step."""
    table = FaceTable.open(faces, ["train"])
    earlier = finetune_stage._start(settings, table, start / "none", start)
    return finetune_stage._network(settings, earlier).state_dict()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    """The folder of a model that was fine-tuned from the backbone."""
    folder = tmp_path_factory.mktemp("earlier")
    faces = write_faces(folder / "faces", some_faces(seed=3))
    settings = finetune_settings(name="first", init="backbone", epochs=1)
    run(folder, faces, settings, folder / "none", backbone)
    return folder / "model"


# -------------------------------------------------------------------------------
# Another fine-tuned model
# -------------------------------------------------------------------------------


@pytest.mark.parametrize("start_head", ["keep", "fresh"])
def test_trunk_comes_from_the_model_and_the_head_where_it_is_kept(
    faces: Path, earlier: Path, start_head: str
) -> None:
    given = load_file(earlier / "model.safetensors")
    scratch = state_before(faces, finetune_settings(), earlier)
    settings = finetune_settings(init="model", start_head=start_head)
    found = state_before(faces, settings, earlier)
    for name, value in found.items():
        is_given = start_head == "keep" or not name.startswith("head.")
        assert torch.equal(value, (given if is_given else scratch)[name])
    assert not torch.equal(given["head.weight"], scratch["head.weight"])


def test_the_config_keeps_the_chain_of_ancestors(
    tmp_path: Path, faces: Path, earlier: Path, backbone: Path
) -> None:
    """A model of a model of a backbone: each with its weights' checksum and what it was trained
    on."""
    first = ModelConfig.read(earlier / CONFIG_FILE)
    start = tmp_path / "start"
    shutil.copytree(earlier, start)
    settings = finetune_settings(name="second", init="model", epochs=1)
    second = run(tmp_path / "second", faces, settings, start, tmp_path / "none")
    settings = finetune_settings(name="third", init="model", start_head="fresh", epochs=1)
    third = run(
        tmp_path / "third", faces, settings, tmp_path / "second" / "model", tmp_path / "none"
    )

    chain: list[dict[str, Any]] = []
    ancestor = third.training["start"]
    while ancestor is not None:
        chain.append(ancestor)
        ancestor = ancestor["start"]
    assert [one["name"] for one in chain] == ["second", "first", "backbone"]
    assert [one["sha256"] for one in chain] == [
        second.weights.sha256,
        first.weights.sha256,
        sha256_of(backbone / "backbone.safetensors"),
    ]
    assert [one["data"]["train"]["sha256"] for one in chain] == [
        second.data["train"]["sha256"],
        first.data["train"]["sha256"],
        json.loads((backbone / "backbone.json").read_text(encoding="utf-8"))["data"]["sha256"],
    ]


def test_a_checkpoint_of_another_start_is_not_gone_on_from(
    tmp_path: Path, faces: Path, earlier: Path
) -> None:
    run(tmp_path, faces, finetune_settings(epochs=1), tmp_path / "none", tmp_path / "none")
    settings = finetune_settings(init="model", epochs=1)
    run(tmp_path, faces, settings, earlier, tmp_path / "none")
    run(tmp_path / "new", faces, settings, earlier, tmp_path / "none")
    found, wanted = (
        load_file(folder / "model" / "model.safetensors") for folder in (tmp_path, tmp_path / "new")
    )
    assert all(torch.equal(found[name], wanted[name]) for name in found)


@pytest.mark.parametrize(
    ("key", "changes", "alignment"),
    [
        ("network", {"network": SMALL_RESNET}, ALIGNMENT),
        ("network", {"network": dataclasses.replace(TINY, options={"pooling": "gap"})}, ALIGNMENT),
        ("normalise", {"normalise": OTHER_NORMALISE}, ALIGNMENT),
        ("alignment", {}, ALIGNMENT | {"face_scale": 1.4}),
        ("grid", {"grid": dataclasses.replace(GRID, step=5.0)}, ALIGNMENT),
    ],
)
def test_a_model_of_other_make_is_refused_with_a_remedy(
    tmp_path: Path, earlier: Path, key: str, changes: dict[str, Any], alignment: dict[str, Any]
) -> None:
    faces = write_faces(tmp_path / "other", some_faces(), alignment=alignment)
    settings = finetune_settings(init="model", **changes)
    with pytest.raises(ValueError, match=rf"the model's {key} is .*, fine-tuning has .*; "):
        run(tmp_path, faces, settings, earlier, tmp_path / "none")


def test_a_fresh_head_may_have_another_grid(tmp_path: Path, faces: Path, earlier: Path) -> None:
    grid = dataclasses.replace(GRID, step=5.0)
    settings = finetune_settings(init="model", start_head="fresh", grid=grid, epochs=1)
    config = run(tmp_path, faces, settings, earlier, tmp_path / "none")
    assert config.network.num_outputs == 21


def test_no_model_in_the_folder_is_refused(tmp_path: Path, faces: Path) -> None:
    (tmp_path / ".gitkeep").touch()
    for start in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"no model to start from; copy .*init: backbone"):
            run(tmp_path, faces, finetune_settings(init="model"), start, tmp_path / "none")


def test_a_head_of_another_method_is_refused(tmp_path: Path, faces: Path, earlier: Path) -> None:
    """Ranking has an output less on the same grid."""
    settings = finetune_settings(init="model", method="ranking")
    with pytest.raises(ValueError, match=r"this network \(head\.weight is \(11, 128\) there, "):
        run(tmp_path, faces, settings, earlier, tmp_path / "none")


# -------------------------------------------------------------------------------
# A file under torchvision's names
# -------------------------------------------------------------------------------


def written(folder: Path, state: dict[str, Tensor], name: str) -> ImportSettings:
    """The settings of a file with this state dict."""
    file = folder / name
    if file.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    else:
        torch.save(state, file)
    return ImportSettings(file=str(file), sha256=sha256_of(file))


@pytest.fixture(scope="module")
def resnet() -> torchvision.models.ResNet:
    torch.manual_seed(1)
    return torchvision.models.resnet18().eval()


@pytest.mark.parametrize("name", ["resnet18.pth", "resnet18.safetensors"])
def test_an_imported_resnet_computes_torchvision_s_features(
    tmp_path: Path, resnet: torchvision.models.ResNet, name: str
) -> None:
    imported = written(tmp_path, resnet.state_dict(), name)
    start = imported_start(imported, RESNET, IMAGENET_NORMALISE)
    network = build("resnet18", {}, 11).eval()
    head_KC = network.head.weight.clone()
    start.load_into(network, "import")
    faces_BCHW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    trunk = torch.nn.Sequential(*list(resnet.children())[:-1])
    with torch.inference_mode():
        wanted_BC = trunk(faces_BCHW).flatten(1)
        assert torch.equal(network(FaceBatch(faces_BCHW, None)).features_BC, wanted_BC)
    assert torch.equal(network.head.weight, head_KC)
    assert start.ancestor == {"name": name, "sha256": imported.sha256, "start": None}


def test_every_layer_of_torchvision_s_vgg_16_has_its_place() -> None:
    """Shapes and kinds alone, on the meta device: 134 million parameters take 0.5 GB."""
    with torch.device("meta"):
        theirs, network = torchvision.models.vgg16(), build("vgg16", {}, 11)
    names = vgg16.TORCHVISION_NAMES
    own = network.state_dict()
    for part, place in names.items():
        for kind in ("weight", "bias"):
            assert theirs.state_dict()[f"{part}.{kind}"].shape == own[f"{place}.{kind}"].shape
    assert len(names) * 2 == len(own) - 2
    for part, place in names.items():
        assert type(theirs.get_submodule(part)) is type(network.get_submodule(place))


def test_torchvision_s_older_files_without_batch_norm_s_counters_are_taken(
    tmp_path: Path, resnet: torchvision.models.ResNet
) -> None:
    state = {
        name: value
        for name, value in resnet.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    imported = written(tmp_path, state, "older.pth")
    start = imported_start(imported, RESNET, IMAGENET_NORMALISE)
    network = build("resnet18", {}, 11)
    start.load_into(network, "import")
    assert torch.equal(network.state_dict()["conv1.weight"], state["conv1.weight"])


def small_state() -> dict[str, Tensor]:
    """A quarter of ResNet-18's channels, under torchvision's names."""
    state = build("resnet18-0.25", {}, 5).state_dict()
    return {name.replace("head.", "fc."): value for name, value in state.items()}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_both_stages_start_from_an_imported_file_and_say_so(
    tmp_path: Path, faces: Path, stage: str
) -> None:
    imported = written(tmp_path, small_state(), "small.safetensors")
    changes: dict[str, Any] = {
        "init": "import",
        "imported": imported,
        "network": SMALL_RESNET,
        "normalise": IMAGENET_NORMALISE,
        "epochs": 1,
    }
    if stage == "finetune":
        config = run(tmp_path, faces, finetune_settings(**changes), tmp_path, tmp_path)
        start = config.training["start"]
    else:
        pretrain(
            pretrain_settings(**changes),
            faces=faces,
            checkpoints=tmp_path / "checkpoints",
            backbone=tmp_path / "backbone",
            history=tmp_path / "pretrain.csv",
            report=lambda *_: None,
        )
        document = json.loads((tmp_path / "backbone" / "backbone.json").read_text(encoding="utf-8"))
        start = document["start"]
    assert start == {"name": "small.safetensors", "sha256": imported.sha256, "start": None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"imported": None}, r"imported null; give imported: \{file, sha256\}"),
        (
            {"network": TINY},
            r"'tiny' has no weights under torchvision's names; .*vgg16, resnet18 and dhaa",
        ),
        ({"normalise": OTHER_NORMALISE}, r"torchvision's weights were trained with .*0\.485"),
        ({"network": RESNET}, r"not the weights of this network \(.* there, .* here; \d+ such\)"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    tmp_path: Path, faces: Path, changes: dict[str, Any], said: str
) -> None:
    values: dict[str, Any] = {
        "init": "import",
        "imported": written(tmp_path, small_state(), "small.safetensors"),
        "network": SMALL_RESNET,
        "normalise": IMAGENET_NORMALISE,
    }
    settings = finetune_settings(**(values | changes))
    with pytest.raises(ValueError, match=said):
        run(tmp_path, faces, settings, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.pth", None, r"gone\.pth: no such file of weights; fetch it yourself"),
        ("text.pth", b"hello", r"text\.pth: not a state dict"),
        ("text.safetensors", b"hello", r"text\.safetensors: not a state dict"),
        ("attack.pth", b"cposix\nsystem\n.", r"attack\.pth: not a state dict"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    file = tmp_path / name
    sha256 = "0" * 64
    if content is not None:
        file.write_bytes(content)
        sha256 = sha256_of(file)
    imported = ImportSettings(file=str(file), sha256=sha256)
    with pytest.raises(ValueError, match=said):
        imported_start(imported, SMALL_RESNET, IMAGENET_NORMALISE)


def test_a_file_of_another_checksum_is_refused(tmp_path: Path) -> None:
    imported = written(tmp_path, small_state(), "small.safetensors")
    other = dataclasses.replace(imported, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"small\.safetensors: sha256 .* is not imported\.sha256"):
        imported_start(other, SMALL_RESNET, IMAGENET_NORMALISE)


def test_a_list_of_weights_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    imported = ImportSettings(
        file=str(tmp_path / "list.pth"), sha256=sha256_of(tmp_path / "list.pth")
    )
    with pytest.raises(ValueError, match=r"list\.pth: not a state dict of tensors"):
        imported_start(imported, SMALL_RESNET, IMAGENET_NORMALISE)
