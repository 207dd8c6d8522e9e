"""Sums over the ranks of a process group, so that each can calibrate on a share of the batches."""

from __future__ import annotations

import torch
from torch import distributed


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
