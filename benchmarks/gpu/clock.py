"""Time on a device: of the whole work, and of its kernels alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

WARM_UPS, FEWEST, MOST, ENOUGH_MS = 2, 3, 20, 60.0


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def wall_seconds(work: Callable[[], Any], device: str) -> float:
    """Wall time of `work`, the device's included."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def kernel_ms(work: Callable[[], Any], device: str) -> float:
    """Median milliseconds of `work` on the device once it is warm, on a card between two events."""
    for _ in range(WARM_UPS):
        work()
    found: list[float] = []
    while len(found) < FEWEST or (len(found) < MOST and sum(found) < ENOUGH_MS):
        found.append(_event_ms(work) if device == "cuda" else 1000 * wall_seconds(work, device))
    return statistics.median(found)


def _event_ms(work: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def busy_ms(work: Callable[[], Any], device: str) -> float | None:
    """Milliseconds that the card computes during `work`, gaps between kernels left out; None on a CPU."""
    if device != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return sum(event.device_time_total for event in profile.key_averages()) / 1000
