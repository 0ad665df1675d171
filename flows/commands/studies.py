"""Many trainings, or one that is spread over machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.in_clone import in_clone
from flows.commands.pipeline import Data, use_data
from flows.pipeline.workspace import ROOT
from visage.cli.failures import FAILED

Workers = Annotated[int, typer.Option(min=1, help="Steps at a time.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each step.")]
Runs = Annotated[Path | None, typer.Option(help="Folder of the steps; default: runs/.")]
OnlyWrite = Annotated[bool, typer.Option("--only-write", help="Run nothing; write what there is.")]
Record = Annotated[bool, typer.Option("--record", help="Keep the results in docs/benchmark/.")]


def sweep(data: Data = None) -> None:
    """Search finetune's settings with Ray Tune, or resume the search."""
    from flows.pipeline.stage_runner import StageFailed
    from flows.scale_out.driver_process import DriverFailed
    from flows.sweep import flow

    with in_clone(StageFailed, DriverFailed) as root:
        use_data(data, root)
        flow.sweep(root)


def scale_out(
    stage: Annotated[str, typer.Argument(help="align@identity, align@target or pretrain.")],
) -> None:
    """Run one stage on Ray: this machine's, or that of RAY_ADDRESS."""
    from flows.pipeline.stage_runner import StageFailed
    from flows.scale_out import flow
    from flows.scale_out.driver_process import DriverFailed

    with in_clone(StageFailed, DriverFailed) as root:
        flow.scale_out(stage, root)


def cluster_demo() -> None:
    """Run the Ray jobs on two nodes of this machine, with synthetic faces."""
    from flows.scale_out.cluster_demo import run_demo

    with in_clone():
        status = run_demo()
    if status != 0:
        raise typer.Exit(status)


def benchmark(
    size: Annotated[
        Literal["quick", "full"], typer.Option(help="A file of benchmarks/.")
    ] = "quick",
    file: Annotated[
        Path | None, typer.Option(help="Another file; takes the place of SIZE.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Only this table of the file; may be repeated.")
    ] = None,
    runs: Runs = None,
    workers: Workers = 1,
    threads: Threads = 1,
    only_write: OnlyWrite = False,
    record: Record = False,
) -> None:
    """Make the paper's tables, or go on with them."""

    chosen = ROOT / "benchmarks" / f"{size}.yaml" if file is None else file.absolute()
    _benchmark(str(chosen), [0], table, runs, workers, threads, only_write, record)


def protocol(
    preset: Annotated[str, typer.Argument(help="A file of presets/, without .yaml.")],
    seed: Annotated[list[int] | None, typer.Option(help="May be repeated; default: 0.")] = None,
    runs: Runs = None,
    workers: Workers = 1,
    threads: Threads = 1,
    only_write: OnlyWrite = False,
    record: Record = False,
) -> None:
    """Run all folds of a preset, and their total."""
    _benchmark(preset, seed or [0], None, runs, workers, threads, only_write, record)


def chain(
    file: Annotated[Path, typer.Argument(help="A chain's file, chains/NAME.yaml.")],
    runs: Runs = None,
    workers: Workers = 1,
    threads: Threads = 1,
) -> None:
    """Fine-tune link by link, each from the model of the one before, or resume."""
    from flows.chain import flow

    chosen = file.absolute()
    folder = ROOT / "runs" if runs is None else runs.absolute()
    with in_clone():
        failed = flow.chain(chosen, folder, workers, threads)
    typer.echo((flow.RESULTS / f"{file.stem}.md").read_text(encoding="utf-8"))
    _end(failed)


def fuse(
    models: Annotated[list[str], typer.Argument(help="Folders, or names of released models.")],
    output: Annotated[Path, typer.Option(help="Folder of the fused model.")],
    rule: Annotated[
        Literal["mean", "weights", "gate", "kernel"] | None,
        typer.Option(help="In place of fuse.rule of params.yaml."),
    ] = None,
    faces: Annotated[
        Path | None, typer.Option(help="Aligned faces; those of split val choose.")
    ] = None,
    second_stream: Annotated[
        list[str] | None, typer.Option(help="Of the gate: a folder's name; may be repeated.")
    ] = None,
) -> None:
    """Make one model of several of one quantity, released ones too."""
    from flows.fuse import fuse_models
    from stages.fuse import FuseSettings
    from stages.settings import load_section

    settings = load_section(ROOT / "params.yaml", "fuse", FuseSettings)
    if rule is not None:
        settings = dataclasses.replace(settings, rule=rule)
    if second_stream:
        settings = dataclasses.replace(settings, second_stream=tuple(second_stream))
    config = fuse_models(settings, models, faces, output)
    typer.echo(f"{config.name}: {output}")


def _benchmark(
    what: str,
    seeds: list[int],
    tables: list[str] | None,
    runs: Path | None,
    workers: int,
    threads: int,
    only_write: bool,
    record: bool,
) -> None:
    from flows.benchmark import flow

    folder = ROOT / "runs" if runs is None else runs.absolute()
    with in_clone():
        failed = flow.benchmark(
            what,
            seeds=seeds,
            only_tables=tables or [],
            runs=folder,
            num_workers=0 if only_write else workers,
            num_threads=threads,
            record=record,
        )

    _end(failed)


def _end(failed: Mapping[str, str]) -> None:
    """Names the failed steps with their reasons, and ends with status 1 where there are some."""
    for step, reason in failed.items():
        typer.echo(f"failed: {step}: {reason}", err=True)
    if failed:
        raise typer.Exit(FAILED)


COMMANDS = {
    "sweep": sweep,
    "scale-out": scale_out,
    "cluster-demo": cluster_demo,
    "benchmark": benchmark,
    "protocol": protocol,
    "chain": chain,
    "fuse": fuse,
}
