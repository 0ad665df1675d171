"""Scores a folder, bucket or table of photos with the champion: parquet with one row for each face,
and one for each photo without a face.

    visage score PHOTOS --output FOLDER [--model FOLDER]   (or: make score PHOTOS=... OUTPUT=...)

PHOTOS is a folder, an fsspec URL (s3://bucket/folder) or a table of paths (inventory.py);
FOLDER gets part-00000.parquet ... (shards.py). The command can be stopped at any time; the same
command then resumes where it stopped. Shards with new or changed photos, or of another model, are
made again. A photo of one face takes some 30 ms of one core, nearly all of it for finding the face.
Memory does not grow with the number of photos.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from flows.pipeline.file_lock import Locked, file_lock
from flows.pipeline.run_name import run_name
from flows.score.inventory import Inventory
from flows.score.page import page, read_scores
from flows.score.shards import Job, ModelFolder, ScoreSettings, fingerprint, is_finished
from flows.score.workers import make_shards
from stages.face_shards import shard_paths
from stages.ingest.records import REPOSITORY
from stages.settings import load_section

PARAMS = REPOSITORY / "params.yaml"
LIST = ".inventory.sqlite"
LOCK = ".lock"

# Gets the number of photos that are done, and of all.
Progress = Callable[[int, int], None]


@flow(name="score", flow_run_name=run_name("photos"), log_prints=True)
def score(
    photos: str, output: Path, model: Path | None = None, params: Path = PARAMS
) -> dict[str, int]:
    """The flow: returns the counts of the scores in `output`, which are also its artifact."""
    logger = get_run_logger()
    bar = create_progress_artifact(
        progress=0.0, key="score-progress", description=f"photos of {photos}"
    )
    assert isinstance(bar, UUID)

    def progress(num_done: int, num_photos: int) -> None:
        logger.info("%d of %d photos", num_done, num_photos)
        update_progress_artifact(bar, progress=100 * num_done / num_photos)

    settings = load_section(params, "score", ScoreSettings)
    with chosen_model(model, params) as chosen:
        shards = score_photos(photos, output, chosen, settings, progress)

    scores = read_scores(shards)
    create_markdown_artifact(
        key="score", markdown=page(photos, output, scores), description=f"Scores of {photos}"
    )
    return scores.counts


@contextmanager
def chosen_model(folder: Path | None, params: Path) -> Iterator[ModelFolder]:
    """The model in a folder, or the registry's champion in a temporary folder."""
    if folder is not None:
        yield ModelFolder(folder=folder, version=None)
        return

    with tempfile.TemporaryDirectory() as into:
        yield champion(Path(into), params)


def champion(into: Path, params: Path) -> ModelFolder:
    """Fetches the registry's champion to `into`; ValueError with the remedy if there is none."""
    # Imported here, because MLflow takes seconds to import and a model in a folder needs none.
    from model_registry.package import PackageSettings, fetch
    from model_registry.promote import champion as champion_of

    name = load_section(params, "package", PackageSettings).model
    version = champion_of(name)
    if version is None:
        raise ValueError(
            f"{name!r} has no champion. Register one (make retrain), or name a model's folder with "
            "--model (make score: MODEL=folder)"
        )

    return ModelFolder(folder=fetch(f"models:/{name}/{version}", into), version=str(version))


def score_photos(
    photos: str, output: Path, model: ModelFolder, settings: ScoreSettings, progress: Progress
) -> list[Path]:
    """Fills `output`; returns its shards. ValueError names what the user can correct."""
    about = model.about()
    with _locked(output), Inventory(output / LIST) as inventory:
        inventory.fill(photos, settings.column)
        num_photos = len(inventory)
        size = settings.shard_photos
        shards = shard_paths(output, num_photos, size)
        num_done = 0

        def jobs() -> Iterator[Job]:
            nonlocal num_done
            for index, path in enumerate(shards):
                part = inventory.slice(index * size, size)
                job = Job(path=path, photos=part, fingerprint=fingerprint(part, about, settings))
                if is_finished(job):
                    num_done += len(part)
                else:
                    yield job

        for job in make_shards(photos, model, settings, jobs()):
            num_done += len(job.photos)
            progress(num_done, num_photos)

    return shards


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Holds the output folder; ValueError if another run uses it, or if it has foreign files."""
    if not (output / LIST).is_file() and any(output.glob("[!.]*")):
        raise ValueError(
            f"{output}: holds files that are no scores; give an empty folder, or a new one (OUTPUT)"
        )

    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(file_lock(output / LOCK, wait=False))
        except Locked as error:
            raise ValueError(f"{output}: {error}; wait for it, or stop it") from error
        yield
