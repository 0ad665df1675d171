"""Settings are strict: every way in which a params file can differ from its dataclass is refused,
and named."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stages.presets import read_params, read_yaml
from stages.settings import (
    SHARED,
    convert,
    load_section,
    print_report,
    read_json,
    section_settings,
    shared_fields,
    stage_main,
)
from tests.imports import REPOSITORY
from tests.small_faces import classic_settings, finetune_settings, pretrain_settings, write_params


@dataclass(frozen=True, kw_only=True)
class Inner:
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


@dataclass(frozen=True, kw_only=True)
class Everything:
    count: int
    rate: float
    name: str
    flag: bool
    mode: Literal["fast", "slow"]
    maybe: int | None
    inner: Inner
    inners: dict[str, Inner]
    pair: tuple[float, str]
    many: tuple[int, ...]
    names: list[str]
    folder: Path
    options: dict[str, Any]


GOOD: dict[str, Any] = {
    "count": 3,
    "rate": 0.5,
    "name": "a",
    "flag": True,
    "mode": "slow",
    "maybe": None,
    "inner": {"low": 0, "high": 1.5},
    "inners": {"x": {"low": 1.0, "high": 2.0}},
    "pair": [1, "b"],
    "many": [1, 2, 3],
    "names": ["n"],
    "folder": "data/raw",
    "options": {"anything": [1, {"at": "all"}]},
}


def load(tmp_path: Path, values: dict[str, Any]) -> Everything:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"stage": values}), encoding="utf-8")
    return load_section(path, "stage", Everything)


def test_every_kind_of_value_arrives_with_its_type(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    inner = Inner(low=0.0, high=1.5)
    assert loaded == Everything(
        **GOOD
        | {
            "inner": inner,
            "inners": {"x": Inner(low=1.0, high=2.0)},
            "pair": (1.0, "b"),
            "many": (1, 2, 3),
        }
        | {"folder": Path("data/raw")}
    )
    assert isinstance(loaded.inner.low, float)
    assert isinstance(loaded.pair[0], float)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": "3"}, r"stage\.count: expected int, found '3'"),
        ({"count": 3.0}, r"stage\.count: expected int, found 3\.0"),
        ({"count": True}, r"stage\.count: expected int, found True"),
        ({"count": None}, r"stage\.count: expected int, found None"),
        ({"rate": True}, r"stage\.rate: expected float, found True"),
        ({"rate": "half"}, r"stage\.rate: expected float, found 'half'"),
        ({"rate": None}, r"stage\.rate: expected float, found None"),
        ({"name": 7}, r"stage\.name: expected str, found 7"),
        ({"flag": 1}, r"stage\.flag: expected bool, found 1"),
        ({"flag": "yes"}, r"stage\.flag: expected bool"),
        ({"mode": "quick"}, r"stage\.mode: 'quick' is not one of 'fast', 'slow'"),
        ({"mode": None}, r"stage\.mode: None is not one of"),
        ({"mode": ["fast"]}, r"stage\.mode: \['fast'\] is not one of"),
        ({"maybe": 1.5}, r"stage\.maybe: expected int, found 1\.5"),
        ({"inner": 5}, r"stage\.inner: expected a section with keys, found 5"),
        ({"inner": {"low": 0}}, r"stage\.inner: missing key 'high'"),
        (
            {"inner": {"low": 0, "high": 1, "hihg": 1}},
            r"stage\.inner: unknown key 'hihg'; known keys: low, high",
        ),
        ({"inner": {"low": 2, "high": 1}}, r"stage\.inner: low 2\.0 is above high 1\.0"),
        ({"inners": [1]}, r"stage\.inners: expected keys with values"),
        (
            {"inners": {"x": {"low": "a", "high": 1}}},
            r"stage\.inners\.x\.low: expected float, found 'a'",
        ),
        ({"inners": {7: {"low": 0, "high": 1}}}, r"stage\.inners, key: expected str, found 7"),
        ({"pair": [1]}, r"stage\.pair: expected 2 values, found 1"),
        ({"pair": [1, "b", 3]}, r"stage\.pair: expected 2 values, found 3"),
        ({"pair": "ab"}, r"stage\.pair: expected a list, found 'ab'"),
        ({"many": [1, "2"]}, r"stage\.many\[1\]: expected int, found '2'"),
        ({"names": {"a": 1}}, r"stage\.names: expected a list"),
        ({"folder": 3}, r"stage\.folder: expected Path, found 3"),
        ({"options": [1]}, r"stage\.options: expected keys with values"),
        ({"extra": 1}, r"stage: unknown key 'extra'; known keys: count, rate"),
    ],
)
def test_value_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=rf"params\.yaml: {said}"):
        load(tmp_path, GOOD | changes)


@pytest.mark.parametrize("name", list(GOOD))
def test_missing_key_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"stage: missing key '{name}'"):
        load(tmp_path, {key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize("text", ["1e-05", "1e-3", "2E+4", "-3.5e2", "1.e6"])
def test_powers_of_ten_are_numbers_as_dvc_writes_them(tmp_path: Path, text: str) -> None:
    """PyYAML reads 1e-05 as text (YAML 1.1 needs a dot and a sign); `dvc exp run -S` writes it."""
    path = tmp_path / "params.yaml"
    path.write_text(f"inner: {{low: -1.0e9, high: {text}}}\n", encoding="utf-8")
    assert load_section(path, "inner", Inner).high == float(text)


def test_sections_of_a_role(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "align: {target: {low: 0, high: 1}, identity: {low: 0, high: 2}}", encoding="utf-8"
    )
    assert load_section(path, "align", Inner, "identity").high == 2
    with pytest.raises(ValueError, match=r"params\.yaml: no section 'export'"):
        load_section(path, "export", Inner)
    with pytest.raises(ValueError, match=r"params\.yaml: align: no section 'other'"):
        load_section(path, "align", Inner, "other")
    path.write_text("align: {target: {low: x, high: 1}}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"align\.target\.low: expected float"):
        load_section(path, "align", Inner, "target")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1", "not valid YAML"), ("- 1\n", "expected sections, found list"), ("", "NoneType")],
)
def test_file_that_holds_no_sections_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"params\.yaml: .*{said}"):
        read_params(path)


@pytest.mark.parametrize("read", [read_params, read_json])
def test_missing_file_is_refused_with_a_remedy(tmp_path: Path, read: Any) -> None:
    with pytest.raises(ValueError, match=r"absent: .*(--params|dvc repro)"):
        read(tmp_path / "absent")


@pytest.mark.parametrize("settings", [classic_settings(), finetune_settings(), pretrain_settings()])
def test_real_settings_come_back_from_a_file(tmp_path: Path, settings: Any) -> None:
    path = write_params(tmp_path / "params.yaml", stage=settings)
    assert load_section(path, "stage", type(settings)) == settings


@given(st.floats(allow_nan=False), st.integers(-(10**9), 10**9))
def test_numbers_keep_their_value(real: float, integer: int) -> None:
    assert convert(yaml.safe_load(yaml.safe_dump(real)), float, "x") == real
    assert convert(yaml.safe_load(yaml.safe_dump(integer)), int, "x") == integer
    assert convert(integer, float, "x") == integer


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """A stage with a setting of its own and two that it shares."""

    count: int
    grid: Inner = field(metadata={"section": "labels"})
    decode: str = field(metadata={"section": "inference"})


SHARED_DOCUMENT: dict[str, Any] = {
    "labels": {"grid": {"low": 0, "high": 1}, "unit": "years"},
    "inference": {"decode": "median"},
    "stage": {"count": 3},
}


def test_a_stage_takes_its_fields_of_the_shared_sections(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(SHARED_DOCUMENT), encoding="utf-8")
    wanted = Sharing(count=3, grid=Inner(low=0.0, high=1.0), decode="median")
    assert load_section(path, "stage", Sharing) == wanted
    assert shared_fields(Sharing) == {"grid": "labels", "decode": "inference"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"stage": {"count": 3, "decode": "mean"}},
            "stage: unknown key 'decode'; it stands once for all stages, in section 'inference'",
        ),
        ({"labels": {"unit": "years"}}, "labels: no key 'grid'"),
        ({"labels": {"grid": {"low": 2, "high": 1}}}, r"labels\.grid: low 2\.0 is above high 1\.0"),
        ({"labels": {"grid": {"low": 0}}}, r"labels\.grid: missing key 'high'"),
        ({"inference": {"decode": 3}}, r"inference\.decode: expected str, found 3"),
        (
            {"inference": {"decode": "mean", "filp": True}},
            "inference: unknown key 'filp'; known keys: decode, flip",
        ),
        ({"inference": None}, "inference: no key 'decode'"),
    ],
)
def test_a_shared_setting_is_held_to_its_type_and_its_place(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=f"here: {said}"):
        section_settings(SHARED_DOCUMENT | changes, "stage", Sharing, "here")


def test_a_shared_section_that_is_missing_is_named() -> None:
    document = {name: value for name, value in SHARED_DOCUMENT.items() if name != "labels"}
    with pytest.raises(ValueError, match="here: no section 'labels'"):
        section_settings(document, "stage", Sharing, "here")


def test_no_setting_stands_in_a_shared_section_and_in_a_stage() -> None:
    """One truth a setting: params.yaml, all stages and flows."""
    document = read_yaml(REPOSITORY / "params.yaml")
    shared = {name for section in SHARED for name in document[section]}
    assert shared == {name for names in SHARED.values() for name in names}
    # Another rule than the model's own, to compare rules
    own = {"evaluate.decode"}
    twice = {
        f"{section}.{name}"
        for section, values in document.items()
        if section not in SHARED and isinstance(values, dict)
        for name in shared & set(values)
    }
    assert twice == own


def test_settings_dataclasses_have_no_defaults() -> None:
    """Values live in params.yaml (rule 7); nested dataclasses included."""
    waiting: list[type] = [
        type(classic_settings()),
        type(finetune_settings()),
        type(pretrain_settings()),
    ]
    while waiting:
        for one in dataclasses.fields(waiting.pop()):
            assert one.default is one.default_factory is dataclasses.MISSING, one.name


# -------------------------------------------------------------------------------
# Command lines
# -------------------------------------------------------------------------------


def test_stage_takes_its_paths_absolute_and_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[Any, Mapping[str, Any]]] = []
    (tmp_path / "params.yaml").write_text("probe: {identity: {low: 1, high: 2}}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["probe", "--role", "identity", "--raw-folder", "a/b", "--out", str(tmp_path)]
    )
    stage_main(
        "probe",
        Inner,
        lambda settings, **rest: called.append((settings, rest)),
        ["raw_folder", "out"],
        True,
    )
    expected = {"raw_folder": tmp_path / "a/b", "out": tmp_path, "report": print_report}
    assert called == [(Inner(low=1.0, high=2.0), expected)]


def test_stage_ends_with_one_line_on_what_the_user_can_correct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text("probe: {low: 1}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["probe"])
    with pytest.raises(SystemExit) as ended:
        stage_main("probe", Inner, print, [])
    assert ended.value.code == 2
    assert re.fullmatch(
        r"stages\.probe: params\.yaml: probe: missing key 'high'.*\n", capsys.readouterr().err
    )


def test_report_prints_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(3, {"loss": 0.123456789, "faces": 1200})
    assert capsys.readouterr().out == "[3] loss 0.123457  faces 1200\n"
