"""Whether there is room for what `bench` is asked to measure: estimated before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.display.text_table import bytes_text
from uniattn_pl.errors import UserError
from uniattn_pl.kernels.stock import EAGER
from uniattn_pl.modeling.loading.dtypes import resolve_dtype
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.forward_memory import inference_memory
from uniattn_pl.plan.predicted_times import EAGER_MAP_HELD

MEMORY_FILE = Path("/proc/meminfo")
# Of a container: folder, its limit, what is used of it, and what of that are files' pages, which it gives back when it
# must; version 2 of cgroups, then version 1.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def check_room(config: ExperimentConfig, shape: ModelShape, device: torch.device) -> None:
    """Check that the unmodified model's prefill fits, which takes a prompt in one forward.

    Raises:
        UserError: with the figure, and the longest prompt that fits.
    """
    free = free_bytes(device)
    if free is None:
        return
    batch_size, longest = max(config.bench.batch_sizes), max(config.bench.lengths)
    needed = prefill_bytes(config, shape, batch_size, longest)
    if needed <= free:
        return
    fits = longest_fitting(config, shape, batch_size, free)
    way_out = f"at most {fits:,} tokens fit" if fits else "not even one token fits; take a smaller model"
    raise UserError(
        f"bench.lengths: a prefill of {batch_size} x {longest:,} tokens needs about {bytes_text(needed)} (estimate), "
        f"and {bytes_text(free)} are free on {device.type}; {way_out}."
    )


def prefill_bytes(config: ExperimentConfig, shape: ModelShape, batch_size: int, length: int) -> int:
    """Bytes at the peak of the unmodified model's prefill, weights included; under eager attention with its map."""
    element = resolve_dtype(config.model.dtype).itemsize
    sizes = {"batch_size": batch_size, "length": length, "chunk": length, "element_bytes": element}
    total = inference_memory(LayerPlan.stock(shape), shape, **sizes).total
    if EAGER not in config.bench.backends:
        return total
    heads = max(layer.heads.queries for layer in shape.layers)
    return total + EAGER_MAP_HELD * batch_size * heads * length**2


def longest_fitting(config: ExperimentConfig, shape: ModelShape, batch_size: int, free: int) -> int:
    """The longest prompt whose prefill takes at most so many bytes; 0: none does."""
    least, beyond = 0, 1
    while prefill_bytes(config, shape, batch_size, beyond) <= free:
        least, beyond = beyond, 2 * beyond
    while beyond - least > 1:
        middle = (least + beyond) // 2
        fits = prefill_bytes(config, shape, batch_size, middle) <= free
        least, beyond = (middle, beyond) if fits else (least, middle)
    return least


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a process can still take on a device; None where this cannot be asked."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu" or not MEMORY_FILE.exists():
        return None
    lines = (line.partition(":") for line in MEMORY_FILE.read_text().splitlines())
    available = next(1024 * int(value.split()[0]) for name, _, value in lines if name == "MemAvailable")
    return min([available, *_left_in_containers()])


def _left_in_containers() -> list[int]:
    left = []
    for folder, limit, used, pages in CGROUPS:
        try:
            entries = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(entries[pages])
            left.append(int((folder / limit).read_text()) - taken)
        except (OSError, ValueError, KeyError):  # no such version, or no limit ("max")
            continue
    return left
