"""The stages' outputs by the paths of dvc.yaml: found by the names of files and folders, so that no
path is written twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.pipeline.dvc_stages import Declared

# Of the stages that measure, the one whose model is exported.
EVALUATION = "evaluate"
EXPORT = "export"
# Its pictures are photos of people: they stay where the photos are.
SHOWS_FACES = "explain"


@dataclass(frozen=True, kw_only=True)
class StageOutputs:
    """Paths in the workspace, whether the files exist or not.

    `metrics`, `groups`, `predictions`: stage -> metrics.json and so on. `plots`: folders of
    pictures. `quality`: role -> the validation's result. `history`: training curves. `manifests`:
    role -> the manifest of its photos. `export`: stage -> folder of a model that can be served.
    `reports`: name -> every file and folder next to the evaluation's metrics, except those with
    faces in them.
    """

    metrics: dict[str, Path]
    groups: dict[str, Path]
    predictions: dict[str, Path]
    plots: tuple[Path, ...]
    quality: dict[str, Path]
    history: tuple[Path, ...]
    manifests: dict[str, Path]
    export: dict[str, Path]
    reports: dict[str, Path]


def outputs_of(root: Path, stages: Sequence[Declared]) -> StageOutputs:
    """The outputs that are read outside the stages."""
    paths: list[tuple[str, Path]] = []
    for stage in stages:
        paths += [(stage.name, root / output) for output in stage.outputs]

    return StageOutputs(
        metrics={name: path for name, path in paths if path.name == "metrics.json"},
        groups={name: path for name, path in paths if path.name == "groups.csv"},
        predictions={name: path for name, path in paths if path.name == "predictions.parquet"},
        plots=tuple(path for _, path in paths if path.name == "plots"),
        quality={
            path.stem: path
            for _, path in paths
            if path.parent.name == "validation" and path.suffix == ".json"
        },
        history=tuple(path for _, path in paths if path.parent.name == "history"),
        manifests={path.parent.name: path for _, path in paths if path.name == "manifest.parquet"},
        export={name: path for name, path in paths if path.name == "export"},
        reports=_reports(paths),
    )


def _reports(paths: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    folders = [
        path.parent for stage, path in paths if stage == EVALUATION and path.name == "metrics.json"
    ]
    if not folders:
        return {}

    folder = folders[0]
    below = [path for stage, path in paths if stage != SHOWS_FACES and path.is_relative_to(folder)]
    return {path.relative_to(folder).as_posix(): path for path in below}
