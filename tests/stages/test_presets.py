"""Presets: how they are laid over params.yaml; and every one of them, and the combinations that the
documents name: the stages take it, its parts fit together, and so do its folds."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.benchmark.flow import TABLES
from flows.benchmark.grid import read_benchmark, settings_of
from flows.drift import DriftSettings
from flows.retrain import RetrainSettings
from flows.scale_out.driver import ScaleOutSettings
from flows.score.shards import ScoreSettings
from flows.sweep.space import SweepSettings, planned
from model_registry.package import PackageSettings
from model_registry.promotion_gate import PromoteSettings
from stages.align import AlignSettings
from stages.baseline import BaselineSettings
from stages.calibrate import CalibrateSettings
from stages.checks.settings import ValidateSettings
from stages.download import DownloadSettings
from stages.evaluate import EvaluateSettings
from stages.explain import ExplainSettings
from stages.export import ExportSettings
from stages.finetune import FinetuneSettings
from stages.fuse import FuseSettings
from stages.presets import (
    known_presets,
    layers,
    leaves,
    main,
    merged,
    read_params,
    read_yaml,
    resolve,
    use,
    with_presets,
)
from stages.pretrain import PretrainSettings
from stages.settings import SHARED, convert, section_settings, shared_fields
from tests.imports import REPOSITORY
from visage.networks import trunk_of

FOLDER = REPOSITORY / "presets"
BY_ROLE = {"download": DownloadSettings, "validate": ValidateSettings, "align": AlignSettings}
ONCE: dict[str, type] = {
    "pretrain": PretrainSettings,
    "baseline": BaselineSettings,
    "finetune": FinetuneSettings,
    "fuse": FuseSettings,
    "calibrate": CalibrateSettings,
    "evaluate": EvaluateSettings,
    "explain": ExplainSettings,
    "export": ExportSettings,
}
FLOWS: dict[str, type] = {
    "retrain": RetrainSettings,
    "package": PackageSettings,
    "promote": PromoteSettings,
    "score": ScoreSettings,
    "drift": DriftSettings,
    "scale_out": ScaleOutSettings,
    "sweep": SweepSettings,
}
FOLDS = {
    "utkface_all_ages": 5,
    "morph_80_20": 5,
    "morph_caucasian": 5,
    "morph_s1_s2_s3": 2,
    "fg_net": 82,
    "aaf": 5,
    "adience": 5,
    "scut_fbp5500_folds": 5,
}
# What heads of presets and docs/real-data.md say may be combined
COMBINED = [
    ["ms_celeb", "chalearn15"],
    ["no_validation", "chalearn15"],
    ["no_validation", "ms_celeb", "chalearn16"],
    ["dldl_v2_paper", "scut_fbp"],
    ["dldl_v2_paper", "cfd"],
    ["dldl_v2_paper", "scut_fbp5500_60_40"],
    ["dldl_v2_paper", "scut_fbp5500_folds"],
    ["dldl_v2_paper", "ms_celeb", "scut_fbp"],
    ["dldl_v2_paper", "ms_celeb", "utkface_coral"],
    ["dhaa_paper", "morph_80_20"],
    ["dhaa_paper", "utkface_coral"],
    ["dhaa_flip", "dhaa_paper", "cacd"],
]
USED = [[], *([name] for name in known_presets(FOLDER)), *COMBINED]


@pytest.fixture(scope="module", params=USED, ids="+".join)
def names(request: pytest.FixtureRequest) -> list[str]:
    """The presets in use."""
    return list(request.param)


@pytest.fixture(scope="module")
def document(names: list[str]) -> dict[str, Any]:
    """All settings with these presets."""
    return with_presets(read_yaml(REPOSITORY / "params.yaml"), names, FOLDER)


def load_all(document: Mapping[str, Any]) -> dict[str, Any]:
    """Section (and role) -> its settings."""
    found: dict[str, Any] = {
        f"{name}.{role}": section_settings(document, name, cls, "here", role)
        for name, cls in BY_ROLE.items()
        for role in ("identity", "target")
    }
    sections = ONCE | FLOWS
    return found | {
        name: section_settings(document, name, cls, "here") for name, cls in sections.items()
    }


def test_every_stage_and_flow_takes_it_and_the_parts_fit(document: dict[str, Any]) -> None:
    found = load_all(document)
    target, finetune, pretrain = found["align.target"], found["finetune"], found["pretrain"]
    assert (target.crop_px, target.template) == (
        found["align.identity"].crop_px,
        found["align.identity"].template,
    )
    own_or_trunk = (finetune.network.name, trunk_of(finetune.network.name))
    assert pretrain.network.name in own_or_trunk
    assert pretrain.network == finetune.network or pretrain.network.options == {}
    assert pretrain.normalise == finetune.normalise
    baseline, evaluate = found["baseline"], found["evaluate"]
    for name in ("splits", "with_dedup", "num_resamples", "interval"):
        assert getattr(baseline, name) == getattr(evaluate, name), (
            f"{name}: both are measured alike"
        )
    labels = found["validate.target"].labels
    assert finetune.grid.minimum <= labels.minimum < labels.maximum <= finetune.grid.maximum
    options = found["download.target"].options
    if (
        found["download.target"].split.assign == "given"
        and "lists" in options
        and isinstance(options["lists"], list)
        and all(isinstance(each, dict) for each in options["lists"])
    ):
        assert {"train", "test"} <= {each["split"] for each in options["lists"]}


def test_the_terms_name_both_sets(document: dict[str, Any]) -> None:
    terms = document["finetune"]["terms"]
    for role, words in terms.items():
        source = document["download"][role]["source"]
        assert ("drawn in code" in words) == (source == "synthetic"), role
        assert ("MS-Celeb" in words) == (source == "ms_celeb"), role
        assert ("LFW" in words) == (source == "lfw"), role


def test_a_sweep_of_it_can_be_planned(document: dict[str, Any]) -> None:
    if document["labels"]["quantity"] != "age":
        pytest.skip("the committed space is one of ages")
    settings = section_settings(document, "sweep", SweepSettings, "here")
    assert planned(document, settings, "here").num_trials > 1


def test_every_fold_is_taken(names: list[str], document: dict[str, Any]) -> None:
    wanted = [FOLDS[name] for name in names if name in FOLDS]
    if not wanted:
        assert "folds" not in document
        return
    assert [len(document["folds"]["values"])] == wanted
    *sections, last = document["folds"]["key"].split(".")
    folds: list[DownloadSettings] = []
    for value in document["folds"]["values"]:
        changed = copy.deepcopy(document)
        section = reduce(lambda part, key: part[key], sections, changed)
        assert last in section, document["folds"]["key"]
        section[last] = value
        folds.append(convert(changed["download"]["target"], DownloadSettings, "here"))
    assert all(one != other for index, one in enumerate(folds) for other in folds[:index])
    if folds[0].split.assign != "given":
        assert len(folds) == folds[0].split.num_folds


# They go over sets of which some have their values already
LAYERS = {"dldl_v2_paper", "no_validation", "dhaa_paper", "dhaa_flip"}


@pytest.mark.parametrize("name", sorted(set(known_presets(FOLDER)) - LAYERS))
def test_a_preset_holds_what_differs(name: str) -> None:
    """No value that stands below it already."""
    own = read_yaml(FOLDER / f"{name}.yaml")
    parents = own.pop("extends", [])
    below = dict(leaves(with_presets(read_yaml(REPOSITORY / "params.yaml"), parents, FOLDER)))
    afresh = tuple(
        f"download.{role}."
        for role in ("identity", "target")
        if "source" in own.get("download", {}).get(role, {})
    )
    repeated = {
        path
        for path, value in leaves(own)
        if below.get(path) == value
        and not path.startswith(("folds.", "sweep.space."))
        and not path.startswith(tuple(f"{place}{key}" for place in afresh for key in FRESH))
    }
    assert repeated == set()


FRESH = ("source", "locations", "sha256", "options")


# -------------------------------------------------------------------------------
# The paper's settings
# -------------------------------------------------------------------------------

AGE_SETS = [
    "chalearn15",
    "chalearn16",
    "appa_real",
    "morph_80_20",
    "morph_caucasian",
    "morph_s1_s2_s3",
    "fg_net",
    "cacd",
    "imdb_wiki",
    "aaf",
    "adience",
]


def is_the_papers(document: Mapping[str, Any]) -> None:
    """DLDL-v2 section 4.1, for both trainings."""
    found = load_all(document)
    assert (found["align.identity"].crop_px, found["align.target"].crop_px) == (224, 224)
    for training in (found["pretrain"], found["finetune"]):
        network = training.network
        assert (network.name, network.options) == ("thin", {"pooling": "hybrid"})
        assert (training.epochs, training.augmentation) == (60, "paper")
        recipe = training.recipes[training.recipe]
        assert (recipe.optimiser, recipe.learning_rate, recipe.batch_size) == ("adam", 1e-3, 128)
        assert (recipe.schedule, recipe.decay_fraction, recipe.decay_factor) == ("step", 0.5, 0.1)
        assert (recipe.weight_decay, recipe.ema_decay, recipe.precision) == (0.0, 0.0, "float32")
    finetune = found["finetune"]
    assert (finetune.method, finetune.decode, finetune.schedule) == (
        "dldl_v2",
        "expectation",
        "joint",
    )
    assert (finetune.loss["lambda_"], finetune.loss["kl_reduction"]) == (1.0, "sum")
    assert finetune.fixed_sigma == (2.0 if finetune.quantity == "age" else 0.5)


@pytest.mark.parametrize("name", AGE_SETS)
def test_presets_that_claim_the_papers_training_have_it(name: str) -> None:
    is_the_papers(settings_of(name, {}))


@pytest.mark.parametrize("name", ["scut_fbp", "cfd", "mebeauty", "utkface_coral"])
def test_the_papers_layer_goes_over_any_target(name: str) -> None:
    is_the_papers(settings_of(name, {"extends": ["dldl_v2_paper"]}))


@pytest.mark.parametrize("name", read_benchmark(TABLES.parent / "full.yaml").sets)
def test_the_full_benchmark_is_the_papers(name: str) -> None:
    changes = read_benchmark(TABLES.parent / "full.yaml").sets[name]
    document = settings_of(name, changes)
    is_the_papers(document)
    assert document["download"]["identity"]["source"] == "ms_celeb"
    assert document["download"]["target"] == settings_of(name, {})["download"]["target"]


def test_an_identity_preset_holds_nothing_of_a_target() -> None:
    for name in ("lfw", "ms_celeb"):
        [(_, own)] = layers([name], FOLDER)
        paths = [path for path, _ in leaves(own)]
        assert not [path for path in paths if ".target" in path or path.startswith("labels")]


def test_the_full_training_list_can_be_trained_on() -> None:
    found = load_all(settings_of("chalearn15", {"extends": ["no_validation"]}))
    assert found["download.target"].split.val_fraction == 0.0
    assert found["validate.target"].min_photos == {"train": 100, "val": 0, "test": 20}


# -------------------------------------------------------------------------------
# How they are laid
# -------------------------------------------------------------------------------


def write(folder: Path, **presets: str) -> Path:
    """Presets in a folder, by name."""
    folder.mkdir(exist_ok=True)
    for name, text in presets.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def test_merging_lays_keys_over_sections() -> None:
    base = {"a": {"x": 1, "y": {"p": 1, "q": 2}}, "b": [1, 2], "c": 3}
    assert merged(base, {"a": {"y": {"q": 5}}, "b": [9]}) == {
        "a": {"x": 1, "y": {"p": 1, "q": 5}},
        "b": [9],
        "c": 3,
    }
    assert merged(base, {}) == base
    assert base == {"a": {"x": 1, "y": {"p": 1, "q": 2}}, "b": [1, 2], "c": 3}


BASE_SET = {
    "source": "synthetic",
    "locations": ["here"],
    "sha256": {"a": "b"},
    "options": {"num_people": 3, "px": 8},
    "scale": {"source": [1, 10], "target": [1, 5]},
    "sigma": {"polynomial": [1.0, 0.1]},
    "joined": {"web": {"source": "table"}},
    "test_set": {"source": "table"},
    "incoming": {"source": "table"},
    "split": {"assign": "random", "seed": 0},
    "limits": {"max_files": 5, "max_ratio": 2.0},
}


@pytest.mark.parametrize("role", ["identity", "target"])
def test_another_set_leaves_behind_what_describes_the_set_below(role: str) -> None:
    changes = {"source": "lfw", "locations": ["there"], "split": {"seed": 1}}
    laid = merged({"download": {role: BASE_SET}}, {"download": {role: changes}})
    assert laid["download"][role] == {
        "source": "lfw",
        "locations": ["there"],
        "sha256": {},
        "options": {},
        "scale": None,
        "sigma": None,
        "joined": {},
        "test_set": None,
        "incoming": None,
        "split": {"assign": "random", "seed": 1},
        "limits": {"max_files": 5, "max_ratio": 2.0},
    }


def test_the_same_set_is_laid_over_key_by_key() -> None:
    changes = {"download": {"target": {"options": {"px": 9}, "limits": {"max_files": 6}}}}
    laid = merged({"download": {"target": BASE_SET}}, changes)["download"]["target"]
    assert laid["options"] == {"num_people": 3, "px": 9}
    assert laid["limits"] == {"max_files": 6, "max_ratio": 2.0}
    assert {key: laid[key] for key in ("source", "incoming", "sha256")} == {
        key: BASE_SET[key] for key in ("source", "incoming", "sha256")
    }


def test_a_space_that_is_searched_is_replaced() -> None:
    base = {"sweep": {"space": {"a": 1, "b": 2}, "seed": 0}}
    assert merged(base, {"sweep": {"space": {"b": 3}}}) == {"sweep": {"space": {"b": 3}, "seed": 0}}


def test_the_first_of_a_list_wins_and_a_preset_wins_over_its_parents(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "presets",
        low="a: {x: low, y: low, z: low}",
        left="extends: [low]\na: {x: left}",
        right="extends: [low]\na: {x: right, y: right}",
        top="extends: [left, right]\nb: {k: top}",
    )
    base = {"a": {"x": 0, "y": 0, "z": 0, "w": 0}, "b": {"k": 0}}
    assert [name for name, _ in layers(["top"], folder)] == ["low", "right", "left", "top"]
    wanted = {"a": {"x": "left", "y": "right", "z": "low", "w": 0}, "b": {"k": "top"}}
    assert with_presets(base, ["top"], folder) == wanted
    assert with_presets(base, ["right", "left"], folder)["a"]["x"] == "right"


def test_what_no_preset_can_be_is_refused_by_name(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "presets",
        one="extends: [two]",
        two="extends: [one]",
        odd="extends: one",
        typo="finetun: {epochs: 1}",
    )
    with pytest.raises(ValueError, match=r"one\.yaml: extends itself, by one -> two -> one"):
        layers(["one"], folder)
    with pytest.raises(ValueError, match=r"odd\.yaml: extends is 'one': give a list"):
        layers(["odd"], folder)
    with pytest.raises(
        ValueError, match=r"tow\.yaml: no such preset; there are synthetic, odd, one, two, typo"
    ):
        layers(["tow"], folder)
    with pytest.raises(ValueError, match=r"typo\.yaml: params\.yaml has no section 'finetun'"):
        with_presets({"finetune": {}}, ["typo"], folder)
    with pytest.raises(ValueError, match="presets is 'one': give a list of names"):
        with_presets({}, "one", folder)


# -------------------------------------------------------------------------------
# params.yaml, and what DVC compares
# -------------------------------------------------------------------------------

PARAMS = "# a head\npresets: []  # in use\n\nfinetune: {epochs: 3, seed: 0}  # mine\n"


@pytest.fixture
def params(tmp_path: Path) -> Path:
    write(tmp_path / "presets", long="finetune: {epochs: 9}", other="finetune: {seed: 1}")
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    return tmp_path / "params.yaml"


def test_the_presets_in_use_are_one_line(params: Path) -> None:
    use(["long", "other"], params)
    wanted = PARAMS.replace("presets: []", "presets: [long, other]")
    assert params.read_text(encoding="utf-8") == wanted
    assert read_params(params)["finetune"] == {"epochs": 9, "seed": 1}
    with pytest.raises(ValueError, match="no such preset; there are synthetic, long, other"):
        use(["longer"], params)
    assert params.read_text(encoding="utf-8") == wanted
    params.write_text(
        PARAMS.replace("presets: []", "presets:").replace("# in use", "# in use\n- long\n- other"),
        encoding="utf-8",
    )
    assert read_params(params)["finetune"] == {"epochs": 9, "seed": 1}
    use(["synthetic"], params)
    assert params.read_text(encoding="utf-8") == PARAMS
    params.write_text("finetune: {epochs: 3}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="one line that begins with 'presets:'; add it"):
        use(["long"], params)


def test_dvc_gets_all_settings_in_one_file(params: Path) -> None:
    resolved = params.parent / "params.resolved.yaml"
    use(["long"], params)
    resolve(params, resolved)
    assert yaml.safe_load(resolved.read_text(encoding="utf-8")) == {
        "finetune": {"epochs": 9, "seed": 0}
    }
    assert resolved.read_text(encoding="utf-8").startswith("# Written by dvc repro")


def test_a_change_that_a_preset_would_hide_is_refused(params: Path) -> None:
    """Else `dvc exp run -S finetune.epochs=4` would run nothing and say nothing."""
    folder = params.parent
    for words in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "--quiet", "-m", "x"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    use(["long"], params)
    resolve(params, folder / "params.resolved.yaml")
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace("seed: 0", "seed: 5"), encoding="utf-8")
    resolve(params, folder / "params.resolved.yaml")
    assert read_params(folder / "params.resolved.yaml")["finetune"] == {"epochs": 9, "seed": 5}
    params.write_text(text.replace("epochs: 3", "epochs: 4"), encoding="utf-8")
    remedy = r"dvc exp run -S presets/long\.yaml:finetune\.epochs=4"
    with pytest.raises(ValueError, match=rf"finetune\.epochs is now 4, .*says 9.*{remedy}"):
        resolve(params, folder / "params.resolved.yaml")


@pytest.mark.parametrize("words", [[], ["use"], ["resolve", "a"], ["value"], ["lose", "a"]])
def test_the_command_line_shows_its_usage(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"usage: python -m stages\.presets use NAME"):
        main(words)


def test_a_value_is_printed_with_the_presets_laid(
    params: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(["long"], params)
    monkeypatch.chdir(params.parent)
    main(["value", "finetune.epochs"])
    assert capsys.readouterr().out == "9\n"


@pytest.mark.parametrize("name", [*BY_ROLE, *ONCE])
def test_dvc_compares_what_a_stage_takes_and_no_more(name: str) -> None:
    """A shared setting re-runs the stages that read it."""
    stage = read_yaml(REPOSITORY / "dvc.yaml")["stages"][name]
    [listed] = stage.get("do", stage)["params"]
    cls = (BY_ROLE | ONCE)[name]
    shared = {f"{section}.{field}" for field, section in shared_fields(cls).items()}
    own = f"{name}.${{item}}" if name in BY_ROLE else name
    assert listed == {"params.resolved.yaml": listed["params.resolved.yaml"]}
    assert set(listed["params.resolved.yaml"]) == {own} | shared


def test_every_shared_setting_is_read() -> None:
    read = {
        (section, field)
        for cls in (ONCE | FLOWS).values()
        for field, section in shared_fields(cls).items()
    }
    assert read == {(section, field) for section, fields in SHARED.items() for field in fields}
