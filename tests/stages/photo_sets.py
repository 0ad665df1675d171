"""Small photo sets made here, and the house that one role's download fills."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stages.download import DownloadSettings, download
from stages.settings import convert

SPLIT = {"assign": "random", "group_by": "picture", "val_fraction": 0.2, "test_fraction": 0.2}
SPLIT |= {"num_folds": 5, "fold": 0, "seed": 0}
LIMITS = {
    "max_photo_bytes": 10**6,
    "max_photo_pixels": 10**6,
    "max_total_bytes": 10**8,
    "max_files": 10**4,
}
LIMITS |= {"max_ratio": 100.0}


def settings(*locations: str | Path, **changes: Any) -> DownloadSettings:
    values: dict[str, Any] = {"source": "people", "options": {"person_level": 1}, "sha256": {}}
    values |= {"scale": None, "sigma": None, "joined": {}, "test_set": None, "incoming": None}
    values |= {"split": SPLIT, "limits": LIMITS, "locations": list(map(str, locations))}
    found: DownloadSettings = convert({**values, **changes}, DownloadSettings, "download.identity")
    return found


def photo(seed: int, width: int = 24, height: int = 16, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def three_people() -> dict[str, bytes]:
    """Three people with five photos each, two of them the same picture."""
    made = {
        f"person{who}/{number}.jpg": photo(10 * who + number)
        for who in range(3)
        for number in range(5)
    }
    return made | {"person0/again.jpg": made["person1/1.jpg"]}


def lay(folder: Path, photos: Mapping[str, bytes]) -> Path:
    for name, content in photos.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar(path: Path, photos: Mapping[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in photos.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


class House:
    """Where one role's download puts its files."""

    def __init__(self, folder: Path) -> None:
        self.raw, self.manifest, self.skipped = (
            folder / "raw" / "x",
            folder / "x" / "m.parquet",
            folder / "x" / "s.csv",
        )
        self.work = self.raw.parent / ".x.work"

    def run(self, chosen: DownloadSettings) -> pd.DataFrame:
        self.counts: Mapping[str, float] = {}
        paths = {"raw": self.raw, "manifest": self.manifest, "skipped": self.skipped}
        download(chosen, **paths, report=lambda _, values: setattr(self, "counts", values))
        return pd.read_parquet(self.manifest)

    def skipped_rows(self) -> list[dict[str, str]]:
        with self.skipped.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""
