"""Whether an attention kernel can be had: on this machine, in this dtype, for this family.

Of FlashAttention transformers brings the wrapper (`flash_attention_forward`), packages the kernels. Where a package is
missing transformers would fetch kernels from the hub and run them, if `kernels` is installed; here it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from uniattn_pl.errors import UserError
from uniattn_pl.families.attention_kernels import ATTENTION_BACKENDS, FLASH_PACKAGES

HALF_DTYPES = (torch.float16, torch.bfloat16)
# transformers' own words for a family without this kernel; soft-capped attention has no sdpa
WITHOUT_KERNEL = ("does not support an attention implementation", "does not support Flash Attention")


def check_kernel(name: str | None, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
    """Check that an attention kernel can be had on this machine, before transformers looks for it on the hub.

    Args:
        name: as transformers has it; None: its choice.
        device, dtype: of the model, as far as they are known.

    Raises:
        UserError: its package is not installed, or it computes neither on this machine or device nor in this dtype.
    """
    problem = None if name is None else kernel_problem(name, device=device, dtype=dtype)
    if problem is not None:
        raise UserError(f"{problem} Attention kernels here: {', '.join(usable_kernels(device=device, dtype=dtype))}.")


def usable_kernels(*, device: torch.device | None = None, dtype: torch.dtype | None = None) -> list[str]:
    """The kernels that can be had on this machine."""
    return [name for name in ATTENTION_BACKENDS if kernel_problem(name, device=device, dtype=dtype) is None]


def kernel_problem(name: str, *, device: torch.device | None, dtype: torch.dtype | None) -> str | None:
    """Why a kernel cannot be had, as one sentence; None: it can, or transformers has the word."""
    if name not in FLASH_PACKAGES:
        return None
    # Looked up when asked: what is there can change within a process only in tests.
    from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX

    facts = FLASH_ATTENTION_COMPATIBILITY_MATRIX[int(name[-1])]
    devices = [device_name for _, device_name in facts["supported_devices"]]
    usable, installed = facts["general_availability_check"](), facts["pkg_availability_check"]()
    if not usable and not installed:
        return (
            f"{name} needs the package {FLASH_PACKAGES[name]}, which is not installed; kernels are not fetched from "
            "the hub."
        )
    if not any(is_here() for is_here, _ in facts["supported_devices"]):
        return f"{name} computes on {', '.join(devices)} only, and this machine has no such device."
    if device is not None and device.type not in devices:
        return f"{name} computes on {', '.join(devices)} only, not on {device.type}."
    if not usable:
        return f"{name} is not supported by transformers in the version of {FLASH_PACKAGES[name]} that is installed."
    if dtype is not None and dtype not in HALF_DTYPES:
        return f"{name} computes in bfloat16 and float16 only, not in {str(dtype).removeprefix('torch.')}."
    return None


@contextmanager
def kernel_explained(
    source: str | Path, name: str | None, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Load the model of a source within. Raises UserError where its kernel cannot be had, here or for its family."""
    check_kernel(name, device=device, dtype=dtype)
    try:
        yield
    except ValueError as error:
        if not any(words in str(error) for words in WITHOUT_KERNEL):
            raise
        raise UserError(
            f"model '{source}' has no attention implementation '{name}'; set model.attn_implementation=eager."
        ) from error
