"""Decoding by a compiled step over a static cache: on a card one CUDA graph instead of hundreds of launches.

A step of an 8B model computes for 16 to 20 ms at 32 sequences of 8,192 tokens on an H100 and took 38 to 49 ms from
Python (docs/RESULTS.md): what a plan saves is seen only without the launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedModel, StaticCache

from uniattn_pl.errors import UserError

MODE = "reduce-overhead"  # inductor's name for CUDA graphs; on a CPU it compiles all the same


def step_config(device: torch.device) -> CompileConfig:
    """How a step is compiled: whole, for fixed sizes."""
    config: Any = CompileConfig(fullgraph=True, dynamic=False, mode=MODE)
    config._compile_all_devices = device.type not in ("cuda", "xpu")  # generate() compiles for accelerators by itself
    return config


def check_compilable(model: PreTrainedModel) -> None:
    """Raise UserError unless transformers can compile this model's step as a whole."""
    if not model._can_compile_fullgraph:
        raise UserError(
            f"transformers cannot compile a decoding step of this model ({type(model).__name__}) as a whole; "
            "leave out --compile (bench.compile)."
        )


def compiled_step(model: PreTrainedModel) -> Callable[..., Any]:
    """The model's forward for one token per sequence over a static cache; compiled by the first call.

    Raises:
        UserError: as `check_compilable`.
    """
    check_compilable(model)
    return model.get_compiled_call(step_config(model.device))


def static_cache(model: PreTrainedModel, tokens: int) -> StaticCache:
    """A cache with fixed room for `tokens` tokens of each sequence."""
    return StaticCache(config=model.config, max_cache_len=tokens)
