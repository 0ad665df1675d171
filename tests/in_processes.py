"""A function in several processes of one torch.distributed group on this machine, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import distributed

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["tests.visage.training.test_distributed", "torch._dynamo"])


def _join(
    function: Callable[..., Any], rank: int, num_ranks: int, store: Path, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks
    )
    function(*arguments)
    distributed.destroy_process_group()


def in_processes(
    num_ranks: int, store: Path, function: Callable[..., Any], *arguments: Any
) -> list[int | None]:
    """Their exit statuses; `store` is a file that is not there yet."""
    processes = [
        FORKS.Process(target=_join, args=(function, rank, num_ranks, store, arguments))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode for process in processes]
