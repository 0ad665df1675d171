"""A chain's file as steps: what is shared, what starts from what; and a chain of drawn faces, run,
resumed and recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import flows.chain.chain
from flows.benchmark.grid import settings_of
from flows.chain import flow
from flows.chain.chain import planned, planned_fused, read_chain
from flows.pipeline.dvc_stages import Declared, declared
from tests.imports import REPOSITORY

CHAINS = sorted((REPOSITORY / "chains").glob("*.yaml"))


@pytest.fixture(scope="module")
def stages() -> list[Declared]:
    return declared(REPOSITORY)


def write(path: Path, **document: Any) -> Path:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


FIRST = {"data": "drawn_real", "settings": {"finetune.init": "scratch"}}


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.stem)
def test_every_chain_can_be_planned(path: Path, stages: list[Declared]) -> None:
    for links in planned(read_chain(path), stages, Path("runs")).values():
        assert [link.number for link in links] == list(range(1, len(links) + 1))
        starts = [link.params["finetune"]["init"] for link in links]
        assert "model" not in starts[:1]
        assert set(starts[1:]) <= {"model"}


def test_links_start_from_the_one_before_and_a_common_first_link_is_one_step(
    tmp_path: Path, stages: list[Declared]
) -> None:
    file = write(
        tmp_path / "c.yaml",
        settings={"finetune.epochs": 2},
        members={
            "one": [FIRST, {"data": "drawn_web_a"}, {"data": "drawn_apparent"}],
            "two": [
                FIRST,
                {"data": "drawn_web_a", "settings": {"finetune.method": "dex"}},
                {"data": "drawn_apparent", "settings": {"finetune.epochs": 3}},
            ],
        },
    )
    members = planned(read_chain(file), stages, tmp_path)
    one, two = members["one"], members["two"]
    assert one[0].steps == two[0].steps
    assert "pretrain" not in one[0].steps
    for number in (1, 2):
        mine, other = one[number].steps, two[number].steps
        assert mine["align@target"].key == other["align@target"].key
        assert mine["finetune"].key != other["finetune"].key
        assert mine["finetune"].inputs["models/start"] == one[number - 1].steps["finetune"]
        assert mine["finetune"].written_as == {"models/start": "models/model"}

    methods = [link.params["finetune"]["method"] for link in two]
    assert methods == ["dldl_v2", "dex", "dex"], "settings go on from link to link"
    assert [link.params["finetune"]["epochs"] for link in two] == [2, 2, 3]


def test_the_fused_model_is_of_every_member_s_last_link(
    tmp_path: Path, stages: list[Declared]
) -> None:
    members = {
        name: [FIRST, {"data": "drawn_apparent", "settings": {"finetune.method": method}}]
        for name, method in (("one", "dldl"), ("two", "dex"))
    }
    file = write(tmp_path / "c.yaml", members=members, fuse={"fuse.rule": "weights"})
    chain = read_chain(file)
    links = planned(chain, stages, tmp_path)
    fused = planned_fused(chain, links, stages, tmp_path)
    assert fused is not None
    step = fused.steps["fuse"]
    assert step.params["fuse"]["rule"] == "weights"
    assert step.inputs["models/model"] == links["two"][1].steps["finetune"]
    assert step.inputs["models/members/one"] == links["one"][1].steps["finetune"]
    assert step.written_as == {"models/members/one": "models/model"}

    chain = read_chain(write(tmp_path / "c.yaml", members={"one": members["one"]}, fuse={}))
    with pytest.raises(ValueError, match="one member alone is not fused"):
        planned_fused(chain, planned(chain, stages, tmp_path), stages, tmp_path)


def test_another_first_link_makes_another_second_one(
    tmp_path: Path, stages: list[Declared]
) -> None:
    keys = set()
    for epochs in (2, 3):
        first = {"data": "drawn_real", "settings": {**FIRST["settings"], "finetune.epochs": epochs}}
        second = {"data": "drawn_apparent", "settings": {"finetune.epochs": 2}}
        file = write(tmp_path / "c.yaml", members={"one": [first, second]})
        keys.add(planned(read_chain(file), stages, tmp_path)["one"][1].steps["finetune"].key)
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"members": {}}, "members: none"),
        ({"members": {"one": []}}, r"members\.one: no link"),
        ({"members": {"one": [{"settings": {}}]}}, "missing key 'data'"),
        ({"members": {"one": [{"data": "nowhere"}]}}, r"nowhere\.yaml: no such preset"),
        (
            {"members": {"one": [{"data": "drawn_real", "settings": {"finetune.epoch": 1}}]}},
            r"member one, link 1: params\.yaml has no setting 'finetune\.epoch'",
        ),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(
    tmp_path: Path, stages: list[Declared], document: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        planned(read_chain(write(tmp_path / "c.yaml", **document)), stages, tmp_path)


def few(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A drawn preset with so few faces that a link takes seconds."""
    settings = settings_of(name, changes)
    drawn = {"num_people": 40, "photos_per_person": 3, "dirt": {}, "px": 96}
    settings["download"]["target"]["options"] |= drawn
    settings["validate"]["target"]["min_photos"] = {"train": 20, "val": 1, "test": 1}
    settings["align"]["target"]["crop_px"] = 48
    settings["evaluate"]["num_resamples"] = 50
    return settings


@pytest.mark.slow
def test_a_chain_of_drawn_faces_runs_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.chain.chain, "settings_of", few)
    monkeypatch.setattr(flow, "RESULTS", tmp_path / "results")
    file = write(
        tmp_path / "small.yaml",
        settings={"finetune.epochs": 1, "finetune.measure_normalise": True},
        members={
            "tiny": [FIRST, {"data": "drawn_apparent"}],
            "softmax": [FIRST, {"data": "drawn_apparent", "settings": {"finetune.method": "dex"}}],
        },
        fuse={"fuse.rule": "mean"},
    )
    assert flow.chain(file, tmp_path / "runs", 2, 1) == {}
    links = json.loads((tmp_path / "results" / "small.json").read_text())["links"]
    assert [(link["member"], link["link"]) for link in links] == [
        ("tiny", 1),
        ("tiny", 2),
        ("softmax", 1),
        ("softmax", 2),
        ("fused", 1),
    ]
    assert [row["weight"] for row in links[4]["figures"]["members"]] == [0.5, 0.5]
    assert all(link["figures"]["mae"]["value"] > 0 for link in links)
    assert links[0]["start"] is None
    assert links[0]["step"] == links[2]["step"]
    assert links[1]["start"]["sha256"] == links[3]["start"]["sha256"]
    page = (tmp_path / "results" / "small.md").read_text()
    assert "tiny-drawn-real" in page

    ran = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/.done.json")}
    assert sum("finetune-" in str(path) for path in ran) == 3
    assert flow.chain(file, tmp_path / "runs", 2, 1) == {}
    assert ran == {path: path.stat().st_mtime_ns for path in ran}
