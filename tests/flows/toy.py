"""A graph of three small stages that write text: numbers -> doubled -> total."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.pipeline.dvc_stages import Declared
from flows.pipeline.step_cache import Step, plan

NUMBERS = (
    "import json, pathlib; "
    "pathlib.Path('numbers.txt').write_text(str(json.load(open('params.yaml'))['numbers']))"
)
DOUBLED = (
    "import json, pathlib; print('doubling'); wrong = "
    "json.load(open('params.yaml'))['doubled']['wrong']; "
    "pathlib.Path('doubled').mkdir(exist_ok=True); assert not wrong, 'told to fail'; "
    "pathlib.Path('doubled/value.txt').write_text(str(2 * "
    "int(pathlib.Path('numbers.txt').read_text())))"
)
TOTAL = (
    "import pathlib; "
    "pathlib.Path('total.txt').write_text(pathlib.Path('doubled/value.txt').read_text() + '!')"
)


def stage(
    name: str, program: str, params: str, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Declared:
    return Declared(
        name=name,
        command=("python", "-c", program),
        params=(params,),
        inputs=inputs,
        outputs=outputs,
    )


GRAPH = [
    stage("numbers", NUMBERS, "numbers", (), ("numbers.txt",)),
    stage("doubled", DOUBLED, "doubled", ("numbers.txt",), ("doubled",)),
    stage("total", TOTAL, "total", ("doubled",), ("total.txt",)),
]


def params(numbers: int, wrong: bool = False, total: int = 0) -> dict[str, Any]:
    return {"numbers": numbers, "doubled": {"wrong": wrong}, "total": total}


def steps(runs: Path, *settings: dict[str, Any]) -> list[Step]:
    """The steps of several cells, each once."""
    by_key = {}
    for one in settings:
        for step in plan(GRAPH, one, "total", runs).values():
            by_key[step.key] = step
    return list(by_key.values())
