"""Weights in 8 or 4 bits while a model is used, through transformers' own quantisation (bitsandbytes)."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.printed_commands import install

QUANTIZATIONS = {
    "8bit": "LLM.int8: about half of bfloat16's memory",
    "4bit": "NF4: about a quarter of bfloat16's memory, computed in bfloat16",
}
# Kept in full: the head decides the token, and W_c repairs a small error.
KEPT_MODULES = ["lm_head", "w_c"]


def no_such_quantization(name: str) -> str:
    """The message for a name that is none of `QUANTIZATIONS`."""
    near = did_you_mean(name, QUANTIZATIONS)
    return f"there is no quantization '{name}'.{near} Allowed: {', '.join(QUANTIZATIONS)}."


def quantization_config(name: str) -> Any:
    """The transformers config that quantises a model as it is loaded; bitsandbytes runs it on CPUs and GPUs.

    Raises:
        UserError: no such quantisation, or bitsandbytes is not installed.
    """
    if name not in QUANTIZATIONS:
        raise UserError(no_such_quantization(name))
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantization '{name}' needs the package bitsandbytes (CPU and CUDA); "
            f"install it with: {install('uniattn-pl[quantization]')}"
        )
    import torch
    from transformers import BitsAndBytesConfig

    quiet_bitsandbytes()
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT_MODULES)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=KEPT_MODULES,
    )


def quiet_bitsandbytes() -> None:
    """Keep it from telling about every layer of every forward that activations are cast; before it is imported."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
