"""The driver of flows/scale_out/flow.py: calls a stage with a runner on Ray, and writes down how
fast it went.

python -m flows.scale_out.driver STAGE WORK.json -m stages.align --role target --manifest ... (as dvc.yaml has it)
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
SCRATCH = ".ray"  # in the working copy, which every node sees


@dataclass(frozen=True, kw_only=True)
class ScaleOutSettings:
    """How each stage is spread, and the MLflow experiment that gets its run."""

    experiment: str
    align: AlignOut
    pretrain: PretrainOut


def stage_of(
    section: str, settings: ScaleOutSettings, scratch: Path, done: Counter[str]
) -> tuple[type, Callable[..., object]]:
    """A stage's settings dataclass, and its function with the runner given, which counts in `done`
    what it did."""
    if section == "align":
        from flows.scale_out import align_ray
        from stages.align import AlignSettings, Work, align
        from stages.face_shards import AlignedPhotos, RowDict

        spread = align_ray.runner(settings.align, scratch)

        def counting_photos(work: Work, chunks: Iterable[list[RowDict]]) -> Iterator[AlignedPhotos]:
            for outcome in spread(work, chunks):
                done["photos"] += len(outcome.faces) + len(outcome.rejects)
                yield outcome

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
    stage, work, _, module, *words = sys.argv[1:]
    section = module.removeprefix("stages.")
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    settings = load_section(Path("params.yaml"), "scale_out", ScaleOutSettings)
    done: Counter[str] = Counter()
    with connected():
        cls, function = stage_of(
            section, settings, Path(SCRATCH).absolute() / stage.replace("@", "-"), done
        )
        sys.argv = [module, *words]
        started = time.perf_counter()
        stage_main(
            section,
            cls,
            function,
            [name for name in names if name != "role"],
            has_role="role" in names,
        )
        seconds = time.perf_counter() - started
        rates = {f"{unit}_per_second": number / seconds for unit, number in done.items()}
        document = {"stage": stage, **resources(), "seconds": seconds, **done, **rates}
    atomic_write_bytes(Path(work), json.dumps(document, indent=1).encode())


if __name__ == "__main__":
    main()
