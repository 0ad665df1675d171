"""Runs a chain of fine-tuning, and records the figures of each link.

    visage chain chains/NAME.yaml [--workers 2]        (make chain CHAIN=...)

chains/NAME.yaml -> runs/<stage>-<key>/ (a step each, kept), reports/chain/NAME.{json,md}. Each
distinct step runs once; what is done is not run again, and a killed training goes on from its last
epoch. Each link is evaluated on the test faces of its own set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.chain.chain import (
    MEASURING,
    MODEL,
    TRAINING,
    PlannedLink,
    planned,
    planned_fused,
    read_chain,
)
from flows.pipeline.dvc_stages import declared
from flows.pipeline.step_cache import REPOSITORY, run
from stages.settings import read_json
from visage.atomic import atomic_write
from visage.evaluation.bootstrap import Estimate
from visage.evaluation.fused_members import members_table
from visage.evaluation.html import Table, title_of, with_interval
from visage.model_config import CONFIG_FILE, ModelConfig

RESULTS = REPOSITORY / "reports" / "chain"
METRICS = "reports/metrics.json"
FUSING = "fuse"
FUSED = "models/fused"
SHOWN = ("mae", "rmse", "epsilon_error")


def chain(file: Path, runs: Path, num_workers: int, num_threads: int) -> dict[str, str]:
    """Runs all links and writes the figures of the finished ones; returns the failed steps with
    their reasons."""
    settings = read_chain(file)
    stages = declared(REPOSITORY)
    members = planned(settings, stages, runs)
    links = [link for own in members.values() for link in own]
    fused = planned_fused(settings, members, stages, runs)
    if fused is not None:
        links.append(fused)
    steps = {step.key: step for link in links for step in link.steps.values()}
    failed = run(steps.values(), num_workers, num_threads)

    document = {"links": [link_document(link) for link in links]}
    write(file.stem, document, RESULTS)
    return failed


def link_document(link: PlannedLink) -> dict[str, Any]:
    """A link's set, settings, start and figures; without figures where it is not finished."""
    step = link.steps[MEASURING]
    document: dict[str, Any] = {
        "member": link.member,
        "link": link.number,
        "data": list(link.link.data),
        "settings": dict(link.link.settings),
        "unit": link.params["labels"]["unit"],
        "step": step.name,
        "model": str(link.steps[TRAINING].folder / MODEL),
        "figures": None,
    }
    if step.done is None:
        return document

    metrics = read_json(step.output(METRICS))
    name = next(name for name in metrics if name != "decision")
    document["figures"] = metrics[name]
    if "members" in metrics[name]:
        fused = ModelConfig.read(link.steps[FUSING].output(FUSED) / CONFIG_FILE)
        return document | {"fused": fused.training["fused"]}

    trained = ModelConfig.read(link.steps[TRAINING].output(MODEL) / CONFIG_FILE)
    return document | {
        "validation": trained.metrics["val"],
        "seconds": trained.training["seconds"],
        "start": trained.training["start"],
    }


def links_table(links: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each link: its set, where it starts, and its figures on that set's test faces."""
    unit = links[0]["unit"]
    header = ["member", "link", "set", "settings", "starts from"]
    header += [title_of(name, unit) for name in SHOWN] + ["faces", "training, s"]
    return Table(caption="", header=header, rows=[_line(link) for link in links])


def _line(link: Mapping[str, Any]) -> list[str]:
    settings = ", ".join(f"{name}: {value}" for name, value in link["settings"].items())
    named = [link["member"], str(link["link"]), " ".join(link["data"]), settings]
    figures = link["figures"]
    if figures is None:
        return [*named, "", *["not run"] * len(SHOWN), "", ""]

    is_fused = "fused" in link
    if is_fused:
        start = "all members"
    else:
        start = "scratch" if link["start"] is None else link["start"]["name"]
    shown = []
    for name in SHOWN:
        figure = figures.get(name)
        text = "undefined" if figure is None else with_interval(name, Estimate(**figure), 3)
        shown.append(text)
    return [
        *named,
        start,
        *shown,
        f"{figures['num_faces']:,}",
        "" if is_fused else str(link["seconds"]),
    ]


def write(name: str, document: Mapping[str, Any], results: Path) -> None:
    """Writes RESULTS/NAME.json and RESULTS/NAME.md."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(results / f"{name}.json") as part:
        part.write_text(text, encoding="utf-8")
    parts = [links_table(document["links"]).markdown()]
    for link in document["links"]:
        if "fused" in link:
            table = members_table(link["figures"]["members"], link["unit"])
            parts.append(f"{link['fused']['reason']}.\n\n{table.markdown()}")
    tables = "\n\n".join(parts)
    page = (
        f"# Chain {name}\n\nWritten by `visage chain`; edit nothing here. A link "
        f"starts from the model of the one before; its figures are of its own set's test faces.\n\n"
        f"{tables}\n"
    )
    with atomic_write(results / f"{name}.md") as part:
        part.write_text(page, encoding="utf-8")
