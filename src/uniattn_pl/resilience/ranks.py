"""What the ranks of a process group say to each other; without a group, one rank talks to itself."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def grouped() -> bool:
    """Whether there is a process group."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The rank of this process: its number in the group, 0 without one."""
    return distributed.get_rank() if grouped() else 0


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if grouped() else 1


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank."""
    if not grouped():
        return value
    values: list[Any] = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: T) -> list[T]:
    """Every rank's value, in order of ranks."""
    if not grouped():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every rank is here."""
    if grouped():
        gather(None)  # unlike a barrier, of any backend without naming devices


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of every rank's tensor, in a new one; all ranks must give the same shape."""
    total = tensor.to(_device(), copy=True)
    distributed.all_reduce(total)
    return total.to(tensor.device)


def sum_rows_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """As `sum_over_ranks` for [L, n] whose L differ: shorter ones count as if zeros followed."""
    rows = torch.tensor(len(tensor), device=_device())
    distributed.all_reduce(rows, op=distributed.ReduceOp.MAX)
    padded = torch.nn.functional.pad(tensor, (0, 0, 0, int(rows) - len(tensor)))
    return sum_over_ranks(padded)


def _device() -> torch.device:
    """Where the group's tensors must be: NCCL sends from GPUs only."""
    return torch.device("cuda" if "nccl" in distributed.get_backend() else "cpu")
