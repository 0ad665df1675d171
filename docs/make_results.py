"""Finished runs -> tracked result files -> docs/results.md. No figure is typed by hand.

    python docs/make_results.py record NAME --protocol utkface_coral
        [--run FOLDER] [--note TEXT] [--machine TEXT]
    python docs/make_results.py render

`record` copies the results of a run (a folder with params.yaml, models/, reports/, dvc.lock) into
docs/results/NAME.json. Run it on the machine that trained, or name that machine. Runs NAME-fold0,
NAME-fold1 ... (or NAME-seed0 ...) are one family: `render` adds their mean with a Student-t
interval. docs/results/published.json holds, per protocol, the published figures and the goals.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from stages.presets import read_params
from visage.atomic import atomic_write
from visage.evaluation.bootstrap import Estimate, student
from visage.evaluation.html import Table, title_of, with_interval
from visage.model_config import ModelConfig
from visage.training.provenance import git_commit, machine_of
from visage.weights import sha256_of

DOCS = Path(__file__).resolve().parent
Record = dict[str, Any]
# Keys of a download section that say where the data was, not what was done with it.
PLACES = ("locations", "sha256", "lists", "table")
STAGES = ("pretrain", "finetune")
ATTRIBUTE_METRICS = ("mae", "bias")


def record(name: str, run: Path, protocol: str, note: str, machine: str | None) -> Record:
    """The tracked record of a finished run.

    Errors: ValueError if a file of the run is missing.
    """
    metrics_file = run / "reports" / "metrics.json"
    groups_file = run / "reports" / "groups.csv"
    for file in (metrics_file, groups_file):
        if not file.is_file():
            raise ValueError(
                f"{file}: no such file; evaluate the run first (dvc repro), or name its folder "
                f"with --run"
            )

    metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
    config = ModelConfig.read(run / "models" / "calibrated" / "config.json")
    params = read_params(run / "params.yaml")

    return {
        "name": name,
        "protocol": protocol,
        "note": note,
        "model": {
            "config": config.name,
            "network": config.network.name,
            "options": config.network.options,
            "method": config.method,
            "template": config.alignment.template,
            "crop_px": config.alignment.crop_px,
            "face_scale": config.alignment.face_scale,
            "unit": config.unit,
            "num_parameters": config.weights.num_parameters,
            "weights_sha256": config.weights.sha256,
            "calibration": None
            if config.calibration is None
            else dataclasses.asdict(config.calibration),
        },
        "init": config.training["init"],
        "trainings": {
            stage: training(run / "reports" / "history" / f"{stage}.csv") for stage in STAGES
        },
        "decision": metrics.pop("decision"),
        "lists": metrics,
        "groups": group_figures(pd.read_csv(groups_file)),
        "settings": settings_of(params),
        "machine": machine_of()
        if machine is None
        else {"words": machine, "on_gpu": "GPU" in machine},
        "code": {
            "git_commit": git_commit(),
            "trained_at": config.code,
            "dvc_lock_sha256": digest(run / "dvc.lock"),
        },
    }


def training(history: Path) -> dict[str, float] | None:
    """Epochs, seconds and the last row of a training's history; None if there was no training."""
    if not history.is_file():
        return None

    table = pd.read_csv(history)
    last = {
        str(key): float(value)
        for key, value in table.iloc[-1].items()
        if str(key).startswith(("train_", "val_"))
    }
    return {"epochs": len(table), "seconds": round(float(table["seconds"].sum())), **last}


def group_figures(groups: pd.DataFrame) -> list[Record]:
    """MAE and bias of every group of the first list of faces."""
    first = groups["list"].iloc[0]
    kept = groups[(groups["list"] == first) & groups["metric"].isin(ATTRIBUTE_METRICS)]
    return [{str(key): value for key, value in row.items()} for row in kept.to_dict("records")]


def without_places(section: Any) -> Any:
    """Settings without PLACES, at every depth."""
    if not isinstance(section, dict):
        return section
    return {key: without_places(value) for key, value in section.items() if key not in PLACES}


def settings_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run: the target's download without PLACES, alignment, and the chosen recipe
    and augmentation."""
    sections = {
        "download": without_places(params["download"]["target"]),
        "align": params["align"]["target"],
        "labels": params["labels"],
        "inference": params["inference"],
        "evaluate": params["evaluate"],
        "calibrate": params["calibrate"],
    }
    for stage in STAGES:
        section = dict(params[stage])
        for chosen, presets in (
            ("recipe", section.pop("recipes")),
            ("augmentation", section.pop("augmentations")),
        ):
            section[chosen] = {"name": section[chosen], **presets[section[chosen]]}
        sections[stage] = section
    return sections


def digest(path: Path) -> str | None:
    """The sha256 of a file, None if there is none."""
    return sha256_of(path) if path.is_file() else None


def render(results: Path) -> str:
    """The text of results.md."""
    published = json.loads((results / "published.json").read_text(encoding="utf-8"))
    files = sorted(path for path in results.glob("*.json") if path.name != "published.json")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    if unknown := sorted({record["protocol"] for record in records} - set(published)):
        raise ValueError(
            f"{results}: protocols {unknown} are not in published.json; describe them there"
        )

    chapters = []
    for key, protocol in published.items():
        chapters.append(chapter(protocol, [run for run in records if run["protocol"] == key]))
    head = (
        "# Results\n\nWritten by `python docs/make_results.py render` from "
        "[docs/results/](results/); do not edit. Brackets are 95 % percentile-bootstrap intervals "
        "over people where people are known, else over pictures. Test photos never choose an epoch "
        "or a setting."
    )
    return "\n\n".join([head, *(text for text in chapters if text)]) + "\n"


def chapter(protocol: Mapping[str, Any], records: Sequence[Record]) -> str:
    """One protocol: description, runs, published figures, goals, and every run in detail."""
    if not records and not protocol["published"]:
        return ""

    parts = [f"## {protocol['title']}", protocol["about"]]
    if records:
        parts += [runs_table(records, protocol["metrics"]).markdown(), *families(records)]
    if protocol["published"]:
        rows = [[entry["model"], entry["mae"], entry["source"]] for entry in protocol["published"]]
        parts += [
            "Published:",
            Table(caption="", header=["model", "MAE", "source"], rows=rows).markdown(),
        ]
    parts += [verdict(bar, records) for bar in protocol["bars"]]
    return "\n\n".join([*parts, *map(details, records)])


def first_list(record: Record) -> str:
    return str(next(iter(record["lists"])))


def figure(record: Record, faces: str, metric: str) -> str:
    """A metric of a list of faces with its interval; empty if the run has none."""
    known = record["lists"].get(faces, {}).get(metric)
    return with_interval(metric, Estimate(**known), 2) if known else ""


def runs_table(records: Sequence[Record], metrics: Sequence[str]) -> Table:
    """One row per run, best first, with the protocol's metrics on the test list and the MAE on its
    unseen part."""
    unit = records[0]["model"]["unit"]
    header = [
        "run",
        "network",
        "start",
        "test faces",
        *(title_of(metric, unit) for metric in metrics),
        "MAE, unseen",
    ]
    ordered = sorted(records, key=lambda r: float(r["lists"][first_list(r)]["mae"]["value"]))
    rows = []
    for run in ordered:
        faces = first_list(run)
        network = f"{run['model']['network']}, {run['model']['crop_px']} px"
        start = "pre-trained" if run["init"] == "backbone" else "scratch"
        row = [run["name"], network, start, f"{run['lists'][faces]['num_faces']:,}"]
        row += [
            *(figure(run, faces, metric) for metric in metrics),
            figure(run, f"{faces}_unseen", "mae"),
        ]
        rows.append([*row, minutes(seconds_of(run)), "GPU" if run["machine"]["on_gpu"] else "CPU"])

    return Table(caption="", header=[*header, "training", "on"], rows=rows)


def seconds_of(record: Record) -> float:
    """Wall time of fine-tuning, and of pre-training if the run starts from it."""
    stages = ["finetune", "pretrain"] if record["init"] == "backbone" else ["finetune"]
    trainings = [record["trainings"][stage] for stage in stages]
    return float(sum(each["seconds"] for each in trainings if each))


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def families(records: Sequence[Record]) -> list[str]:
    """One sentence per family: the mean over its folds or seeds."""
    members: dict[str, list[float]] = {}
    for run in records:
        family = re.sub(r"-(fold|seed)\d+$", "", run["name"])
        members.setdefault(family, []).append(float(run["lists"][first_list(run)]["mae"]["value"]))

    sentences = []
    for family, values in members.items():
        if len(values) > 1:
            mean = student(values, 0.95)
            sentences.append(
                f"`{family}`, {len(values)} runs: mean MAE {mean.value:.2f} ({mean.low:.2f} to "
                f"{mean.high:.2f}, Student t)."
            )
    return sentences


def verdict(bar: Mapping[str, Any], records: Sequence[Record]) -> str:
    """Whether a goal is met, by which run and by how much."""
    fit = [run for run in records if run["model"]["network"] == bar["network"]]
    fit = [run for run in fit if run["machine"]["on_gpu"] == bar["on_gpu"]]
    head = f"Goal: {bar['title']}, MAE at most {bar['mae']:.2f}."
    if not fit:
        return f"{head} **Not run.**"

    best = min(fit, key=lambda r: float(r["lists"][first_list(r)]["mae"]["value"]))
    value = float(best["lists"][first_list(best)]["mae"]["value"])
    word = (
        f"Met by {bar['mae'] - value:.2f}"
        if value <= bar["mae"]
        else f"Missed by {value - bar['mae']:.2f}"
    )
    return f"{head} **{word}** (`{best['name']}`, {value:.2f})."


def details(record: Record) -> str:
    """A run's decoding, seeds, hardware, metrics, groups and settings, in a folded section."""
    decision, settings, unit = record["decision"], record["settings"], record["model"]["unit"]
    seeds = {stage: settings[stage]["seed"] for stage in ("pretrain", "finetune", "evaluate")}
    seeds["split"] = settings["download"]["split"]["seed"]
    views = "flip averaged" if decision["flip"] else "one view"
    fixed = decision["epsilon_sigma"]
    otherwise = "" if fixed is None else f", {fixed:g} {unit} where it has none"
    lines = [
        f"Prediction: {decision['decode']}, {views}. The epsilon-error's sigma: the label's own"
        f"{otherwise}.",
        "Seeds: " + ", ".join(f"{stage} {seed}" for stage, seed in seeds.items()) + ".",
        f"Machine: {record['machine']['words']}. Training: {minutes(seconds_of(record))}.",
        f"Model: {record['model']['num_parameters']:,} parameters, trained by code "
        f"{record['code']['trained_at']['git_commit'][:12]}.",
    ]
    if known := record["model"].get("calibration"):  # older records have none
        lines.append(
            f"Calibration on {known['num_faces']:,} validation faces: temperature "
            f"{known['temperature']:.3f}, interval {known['offset']:+.2f} {unit} at both ends."
        )
    if record["note"]:
        lines.append(f"Note: {record['note']}")

    lists = list(record["lists"])
    names = [key for key, value in record["lists"][lists[0]].items() if isinstance(value, dict)]
    metrics = [
        [title_of(name, unit), *(figure(record, faces, name) for faces in lists)] for name in names
    ]
    counts = [
        [key, *(str(record["lists"][faces].get(key, "")) for faces in lists)]
        for key in record["lists"][lists[0]]
        if key.startswith("num_")
    ]

    parts = [
        "- " + "\n- ".join(lines),
        Table(caption="", header=["", *lists], rows=counts + metrics).markdown(),
    ]
    parts += [
        groups_table(record, attribute)
        for attribute in dict.fromkeys(g["attribute"] for g in record["groups"])
    ]
    parts.append("```json\n" + json.dumps(settings, indent=1) + "\n```")
    return (
        f"<details><summary>{record['name']}</summary>\n\n" + "\n\n".join(parts) + "\n\n</details>"
    )


def groups_table(record: Record, attribute: str) -> str:
    """MAE and bias of the groups of an attribute."""
    unit = record["model"]["unit"]
    rows: dict[str, list[str]] = {}
    for group in record["groups"]:
        if group["attribute"] != attribute:
            continue
        name = str(group["group"])
        row = rows.setdefault(name, [name, f"{group['num_faces']:,}"])
        estimate = Estimate(value=group["value"], low=group["low"], high=group["high"])
        row.append(with_interval(group["metric"], estimate, 2))

    header = [attribute, "faces", *(title_of(metric, unit) for metric in ATTRIBUTE_METRICS)]
    return Table(caption="", header=header, rows=list(rows.values())).markdown()


def main() -> None:
    """The two commands; a missing file ends them with one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python docs/make_results.py", description=__doc__.split("\n", 1)[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    recorder = verbs.add_parser("record", help="a finished run -> docs/results/NAME.json")
    recorder.add_argument("name")
    recorder.add_argument("--protocol", required=True, help="a key of docs/results/published.json")
    recorder.add_argument(
        "--run", type=Path, default=DOCS.parent, help="the run's folder; default: this repository"
    )
    recorder.add_argument(
        "--note", default="", help="what a reader should know, such as other settings that failed"
    )
    recorder.add_argument(
        "--machine", help="the machine that trained, if not this one; write GPU if it has one"
    )
    verbs.add_parser("render", help="docs/results/*.json -> docs/results.md")
    arguments = parser.parse_args()

    try:
        if arguments.verb == "record":
            kept = record(
                arguments.name, arguments.run, arguments.protocol, arguments.note, arguments.machine
            )
            with atomic_write(DOCS / "results" / f"{arguments.name}.json") as part:
                part.write_text(
                    json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
                )
        text = render(DOCS / "results")
        with atomic_write(DOCS / "results.md") as part:
            part.write_text(text, encoding="utf-8")
    except ValueError as error:
        print(f"make_results: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
