"""The processes that train one network together: this one's number, sums over all, and the network
whose gradients are averaged.

A process group of torch.distributed makes them (flows/scale_out/pretrain_ray.py starts one);
without it, there is one process, and nothing here computes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def in_group() -> bool:
    """Whether this process trains together with others."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if in_group() else 0


def num_ranks() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if in_group() else 1


def totals(values: Sequence[float], device: torch.device) -> list[float]:
    """The sums of `values` over all processes, the same in each; `device` is that of the
    group's tensors."""
    if not in_group():
        return list(values)

    sums = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def mean_count(count: int, device: torch.device) -> int | Tensor:
    """The mean of `count` over all processes, left on the device: no process waits for it."""
    if not in_group():
        return count
    sum_ = torch.tensor(float(count), device=device)
    distributed.all_reduce(sum_)
    return sum_ / num_ranks()


def joined(network: nn.Module) -> nn.Module:
    """`network` itself, or wrapped so that a backward pass averages its gradients over the
    processes."""
    return DistributedDataParallel(network) if in_group() else network


def apart(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Passes of a `joined` network whose gradients are added up here, and are averaged over the
    processes in the `last` pass of a batch only."""
    if isinstance(network, DistributedDataParallel) and not last:
        quiet: AbstractContextManager[None] = network.no_sync()
        return quiet
    return nullcontext()


def take_first(network: nn.Module) -> None:
    """Gives every process the first one's buffers (BatchNorm's statistics, which each gathers on
    its own faces)."""
    if in_group():
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)
