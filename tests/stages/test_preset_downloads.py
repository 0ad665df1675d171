"""The age sets' presets from end to end: a small native set where the preset looks for it becomes a
manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from stages.download import DownloadSettings
from stages.presets import read_yaml, with_presets
from stages.settings import convert
from tests.imports import REPOSITORY
from tests.stages.photo_sets import House, lay, photo
from tests.stages.sources.test_age_sources import cells, write
from tests.stages.sources.test_morph import HEADER, line


def lay_photos(folder: Path, names: list[str]) -> list[str]:
    """Every photo another picture."""
    lay(folder, {name: photo(seed) for seed, name in enumerate(names)})
    return names


def lay_chalearn(folder: Path, files: dict[str, str], form: str) -> None:
    for name, file in files.items():
        photos = lay_photos(folder / name, [f"{name}_{number}.jpg" for number in range(40)])
        header = ["image,mean,stdv"] if form == "," else []
        write(folder / file, *header, *(form.join((each, "30.5", "2")) for each in photos))


def lay_appa_real(folder: Path) -> None:
    for name in ("train", "valid", "test"):
        lay_photos(
            folder / name,
            [f"00000{number}.jpg{end}" for number in range(5) for end in ("", "_face.jpg")],
        )
        header = "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age"
        write(
            folder / f"gt_avg_{name}.csv",
            header,
            *(f"00000{number}.jpg,38,30.5,2,31" for number in range(5)),
        )


def lay_morph(folder: Path) -> None:
    groups = (("W", "M", 24), ("B", "M", 40), ("W", "F", 8), ("B", "F", 10), ("H", "M", 5))
    kinds = [(race, sex) for race, sex, count in groups for _ in range(count)]
    names = [f"{place // 2 + 1:06}_{place % 2}{sex}30.JPG" for place, (_, sex) in enumerate(kinds)]
    lay_photos(folder / "Album2", names)
    lines = (line(name, race) for name, (race, _) in zip(names, kinds, strict=True))
    write(folder / "morph_2008_nonCommercial.csv", HEADER, *lines)


def lay_cacd(folder: Path) -> None:
    ranks = [1 + place for place in range(8) for _ in range(5)]
    names = lay_photos(folder / "CACD2000", [f"30_Celebrity_{place:04}.jpg" for place in range(40)])
    columns = {
        "age": np.full((40, 1), 30),
        "identity": np.array([ranks]).T,
        "rank": np.array([ranks]).T,
    }
    images = columns | {"name": cells(names, column=True)}
    savemat(folder / "celebrity2000_meta.mat", {"celebrityImageData": images})


def lay_imdb_wiki(folder: Path) -> None:
    for half in ("imdb", "wiki"):
        names = [f"0{number % 3}/{half}{number}_rm_1970-3-1_2000.jpg" for number in range(60)]
        lay_photos(folder / f"{half}_crop", names)
        struct = {"full_path": cells(names, column=False), "name": cells(names, column=False)}
        columns = {
            "dob": 719_590,
            "photo_taken": 2000,
            "gender": 1.0,
            "face_score": 2.0,
            "second_face_score": np.nan,
        }
        struct |= {field: np.full((1, 60), value) for field, value in columns.items()}
        savemat(folder / f"{half}_crop" / f"{half}.mat", {half: struct})


SETS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "chalearn15": (
        "chalearn15",
        lambda at: lay_chalearn(at, {"Train": "Train.csv", "Validation": "Validation.csv"}, ";"),
    ),
    "chalearn16": (
        "chalearn16",
        lambda at: lay_chalearn(
            at, {name: f"{name}_gt.csv" for name in ("train", "valid", "test")}, ","
        ),
    ),
    "appa_real": ("appa_real", lay_appa_real),
    "morph_80_20": ("morph", lay_morph),
    "morph_caucasian": ("morph", lay_morph),
    "morph_s1_s2_s3": ("morph", lay_morph),
    "fg_net": (
        "fg_net/images",
        lambda at: lay_photos(
            at, [f"{who:03}A{age:02}.JPG" for who in range(1, 83) for age in (3, 40)]
        ),
    ),
    "cacd": ("cacd", lay_cacd),
    "imdb_wiki": ("imdb_wiki", lay_imdb_wiki),
    "aaf": (
        "aaf/original images",
        lambda at: lay_photos(at, [f"{7361 + number:05}A{number:02}.jpg" for number in range(40)]),
    ),
}
EXPECTED: dict[str, Callable[[Counter[str]], bool]] = {
    "chalearn15": lambda count: count["test"] == 40 and count["train"] + count["val"] == 40,
    "chalearn16": lambda count: count["test"] == 40 and count["train"] + count["val"] == 80,
    "appa_real": lambda count: count == {"train": 5, "val": 5, "test": 5},
    "morph_80_20": lambda count: count.total() == 87 and 8 < count["test"] < 27,
    "morph_caucasian": lambda count: count.total() == 32 and 1 < count["test"] < 13,
    "morph_s1_s2_s3": lambda count: count["train"] + count["val"] == 16 and count["test"] == 71,
    "fg_net": lambda count: count["test"] == 2 and count.total() == 164,
    "cacd": lambda count: count == {"train": 15, "val": 10, "test": 15},
    "imdb_wiki": lambda count: count.total() == 120 and count["test"] < 20 and count["val"] < 12,
    "aaf": lambda count: count.total() == 40 and 2 < count["test"] < 16,
}


def at_home(value: Any, home: Path) -> Any:
    """A preset's values with its folder of data moved."""
    if isinstance(value, dict):
        return {key: at_home(item, home) for key, item in value.items()}
    if isinstance(value, list):
        return [at_home(item, home) for item in value]
    return value.replace("../shared/data", str(home)) if isinstance(value, str) else value


@pytest.mark.parametrize("preset", list(SETS))
def test_a_native_set_becomes_the_manifest_of_its_protocol(tmp_path: Path, preset: str) -> None:
    folder, lay_set = SETS[preset]
    lay_set(tmp_path / "home" / folder)
    base = read_yaml(REPOSITORY / "params.yaml")
    document = with_presets(base, [preset], REPOSITORY / "presets")
    section = at_home(document["download"]["target"], tmp_path / "home")
    if preset == "morph_s1_s2_s3":
        section["options"]["sets"] |= {"men": 6, "women": 2}
    rows: pd.DataFrame = House(tmp_path / "data").run(convert(section, DownloadSettings, preset))
    assert EXPECTED[preset](Counter(rows.split)), Counter(rows.split)
    assert rows.label.notna().all()
    assert rows.unreadable.isna().all()
    by_person = rows.dropna(subset=["person"]).groupby("person").split.nunique()
    if not preset.startswith("morph"):
        assert by_person.le(1).all(), "nobody is in two splits"
