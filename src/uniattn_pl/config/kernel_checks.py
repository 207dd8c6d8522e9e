"""Checks of attention kernels: what one can do at all, wherever it is installed.

They are run with those of `config/checks.py`, which has the same form.
"""

from __future__ import annotations

from collections.abc import Callable

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.families.attention_kernels import ATTENTION_BACKENDS, FLASH_PACKAGES, WITH_MAPS
from uniattn_pl.plan.roles import TILED_MODES

TILED_KERNEL = "sdpa"


def _kept_maps(config: ExperimentConfig) -> str | None:
    without = [
        name
        for name in (config.model.attn_implementation, *config.bench.backends)
        if name in ATTENTION_BACKENDS and name not in WITH_MAPS
    ]
    if config.model.reuse != "materialise" or not without:
        return None
    return f"{without[0]} takes no masks that fit a map, so none is kept; use auto, or {' or '.join(WITH_MAPS)}."


def _tiles(config: ExperimentConfig) -> str | None:
    others = [name for name in (config.model.attn_implementation, *config.bench.backends) if name != TILED_KERNEL]
    if config.model.reuse not in TILED_MODES or not others:
        return None
    return f"{config.model.reuse} are kept by kernels in the place of {TILED_KERNEL}, not of {others[0]}; use auto."


def _half_dtype(config: ExperimentConfig) -> str | None:
    flash = [name for name in (config.model.attn_implementation, *config.bench.backends) if name in FLASH_PACKAGES]
    if config.model.dtype != "float32" or not flash:
        return None
    return (
        f"{flash[0]} computes in bfloat16 and float16 only, not in float32; use bfloat16, or {' or '.join(WITH_MAPS)}."
    )


def _half_precision(config: ExperimentConfig) -> str | None:
    kernel, precision = config.model.attn_implementation, config.training.precision
    if kernel not in FLASH_PACKAGES or precision in ("auto", "bf16-true"):
        return None
    return (
        f"{kernel} computes in bfloat16 and float16 only, and {precision} has float32 weights; use bf16-true, or sdpa."
    )


def _packed_rows(config: ExperimentConfig) -> str | None:
    kernel = config.model.attn_implementation
    if not config.data.packing or kernel not in FLASH_PACKAGES or config.training.micro_batch_size == 1:
        return None
    return f"{kernel} keeps packed rows apart in micro batches of 1 only; use 1, or sdpa."


KERNEL_CHECKS: tuple[tuple[tuple[str, ...], Callable[[ExperimentConfig], str | None]], ...] = (
    (("model.reuse", "model.attn_implementation", "bench.backends"), _kept_maps),
    (("model.reuse", "model.attn_implementation", "bench.backends"), _tiles),
    (("model.dtype", "model.attn_implementation", "bench.backends"), _half_dtype),
    (("training.precision", "model.attn_implementation"), _half_precision),
    (("training.micro_batch_size", "data.packing", "model.attn_implementation"), _packed_rows),
)
