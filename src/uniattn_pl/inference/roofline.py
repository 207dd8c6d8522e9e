"""The peak rates of a machine, which bound a measured time from below."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PRODUCT_SIZE = 2048
COPY_BYTES = 2**28
REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """Best of a few tries: FLOPs per second of a large matrix product, bytes per second read and written by a copy."""

    flops_per_s: float
    bytes_per_s: float

    def bound_s(self, *, flops: float = 0, read_bytes: float = 0) -> float:
        """Seconds that this much work takes at least."""
        return max(flops / self.flops_per_s, read_bytes / self.bytes_per_s)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Take the two peaks on this device, in the dtype the model computes in."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = product_seconds(device, dtype, size=PRODUCT_SIZE, repeats=REPEATS)
    copied = min(_seconds(lambda: target.copy_(source), device) for _ in range(REPEATS))
    return Machine(2 * PRODUCT_SIZE**3 / product, 2 * COPY_BYTES / copied)


def product_seconds(device: torch.device, dtype: torch.dtype, *, size: int, repeats: int) -> float:
    """Seconds of a product of two square matrices, the best of a few."""
    matrix = torch.randn(size, size, device=device).to(dtype)
    return min(_seconds(lambda: matrix @ matrix, device) for _ in range(repeats))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
