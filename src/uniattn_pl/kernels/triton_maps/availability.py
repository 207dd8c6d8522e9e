"""Where the Triton kernels run, and what of an attention they can compute."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from uniattn_pl.errors import UserError
from uniattn_pl.kernels.choice import PLAIN_ARGUMENTS
from uniattn_pl.plan.roles import TILED_MODES, TILES_FP8

ARGUMENTS = PLAIN_ARGUMENTS | {"softcap", "s_aux"}
"""What a family may ask of these kernels: caps of scores and sinks besides what is plain."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LEAST_CAPABILITY, LEAST_FP8_CAPABILITY = (8, 0), (8, 9)
LARGEST_HEAD = 256
"""Numbers of a head whose tiles fit a card's shared memory."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def triton_runs_on(device_type: str, *, fp8: bool = False) -> bool:
    """Whether there is a card the kernels were written for; on a CPU only Triton's interpreter runs them, for tests."""
    if device_type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1" and _installed()
    return (
        device_type == "cuda" and _installed() and _capability() >= (LEAST_FP8_CAPABILITY if fp8 else LEAST_CAPABILITY)
    )


def can_compute(query: torch.Tensor, mask: torch.Tensor | None, arguments: Mapping[str, Any]) -> bool:
    """Whether all that a layer asks for, by its mask and by the arguments of its family, is in the kernels."""
    asked = all(value is None or name in ARGUMENTS for name, value in arguments.items())
    causal = arguments.get("is_causal") is not False
    boolean = mask is None or (mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1)
    return asked and causal and boolean and query.dtype in DTYPES and query.shape[-1] <= LARGEST_HEAD


def check_reuse_mode(mode: str, device: torch.device) -> None:
    """Raise UserError where a user wants tiles and they cannot be had: elsewhere maps would be computed again."""
    if mode not in TILED_MODES or triton_runs_on(device.type, fp8=mode == TILES_FP8):
        return
    least = ".".join(map(str, LEAST_FP8_CAPABILITY if mode == TILES_FP8 else LEAST_CAPABILITY))
    raise UserError(
        f"model.reuse={mode} needs Triton and a CUDA card of compute capability {least} or more, which {device} is "
        "not; use auto."
    )


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=1)
def _capability() -> tuple[int, int]:
    """The least of all cards in sight."""
    return min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
