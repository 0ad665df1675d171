"""The driver of flows/scale_out/flow.py: calls a stage with a runner on Ray, and writes down how
fast it was.

    python -m flows.scale_out.driver STAGE WORK.json -m stages.align --role target --manifest ...

What follows STAGE and WORK.json is the stage's command in dvc.yaml.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.scale_out.align_ray import AlignOut
from flows.scale_out.pretrain_ray import PretrainOut
from flows.scale_out.ray_cluster import connected, resources
from stages.settings import Report, load_section, stage_main
from visage.atomic import atomic_write_bytes

SECTIONS = ("align", "pretrain")
SCRATCH = ".ray"  # in the working copy, because every node sees that


@dataclass(frozen=True, kw_only=True)
class ScaleOutSettings:
    """How each stage is distributed, and the MLflow experiment that gets its run."""

    experiment: str
    align: AlignOut
    pretrain: PretrainOut


def stage_of(
    section: str, settings: ScaleOutSettings, scratch: Path, done: Counter[str]
) -> tuple[type, Callable[..., object]]:
    """A stage's settings dataclass, and its function with a runner on Ray, which counts the photos
    or faces in `done`."""
    if section == "align":
        from flows.scale_out import align_ray
        from stages.align import AlignSettings, Work, align
        from stages.face_shards import AlignedPhotos, RowDict

        spread = align_ray.runner(settings.align, scratch)

        def counting_photos(work: Work, chunks: Iterable[list[RowDict]]) -> Iterator[AlignedPhotos]:
            for aligned in spread(work, chunks):
                done["photos"] += len(aligned.faces) + len(aligned.rejects)
                yield aligned

        return AlignSettings, functools.partial(align, runner=counting_photos)

    from flows.scale_out import pretrain_ray
    from stages.pretrain import PretrainSettings, Training, pretrain

    train = pretrain_ray.runner(settings.pretrain, scratch)

    def counting_faces(training: Training, report: Report) -> None:
        def counting_report(epoch: int, values: Mapping[str, float]) -> None:
            done["faces"] += len(training.faces)
            report(epoch, values)

        train(training, counting_report)

    return PretrainSettings, functools.partial(pretrain, runner=counting_faces)


def main() -> None:
    """Runs the stage's command, in this process, with its runner; ends with the stage's exit
    status."""
    # The third word is the `-m` of the stage's command.
    stage, work, _, module, *words = sys.argv[1:]
    section = module.removeprefix("stages.")
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    settings = load_section(Path("params.yaml"), "scale_out", ScaleOutSettings)
    scratch = Path(SCRATCH).absolute() / stage.replace("@", "-")
    done: Counter[str] = Counter()

    with connected():
        cls, function = stage_of(section, settings, scratch, done)
        path_names = [name for name in names if name != "role"]
        sys.argv = [module, *words]
        started = time.perf_counter()
        stage_main(section, cls, function, path_names, has_role="role" in names)
        seconds = time.perf_counter() - started

        rates = {f"{unit}_per_second": number / seconds for unit, number in done.items()}
        document = {"stage": stage, **resources(), "seconds": seconds, **done, **rates}

    atomic_write_bytes(Path(work), json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
