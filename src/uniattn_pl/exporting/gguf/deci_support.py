"""What a GGUF file of llama.cpp's `deci` architecture can say of a model, and what it cannot.

`deci` is the architecture of Llama-3.1-Nemotron. Beside what `exporting.llama_blocks` says it rotates whole heads, and
of the stretched rotations those that are written here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniattn_pl.exporting.llama_blocks import LLAMA_BLOCKS, block_problems
from uniattn_pl.families.inspection import stock_model_type
from uniattn_pl.plan import LayerPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from uniattn_pl.plan import ModelShape

DECI_ROTATIONS = ("default", "linear", "llama3")


def deci_problems(plan: LayerPlan, config: PreTrainedConfig, shape: ModelShape) -> list[str]:
    """Why a model cannot be written for `deci`, in words that name the layers and the engine that can; none: it can."""
    problems = block_problems("llama.cpp's deci architecture", plan, config, shape)
    if stock_model_type(config) not in LLAMA_BLOCKS:
        return problems
    rotation = getattr(config, "rope_parameters", None) or {}
    kind = rotation.get("rope_type", "default")
    if kind not in DECI_ROTATIONS:
        problems.append(f"rope_type '{kind}' is not written to GGUF; these are: {', '.join(DECI_ROTATIONS)}.")
    if rotation.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append("deci rotates whole heads, and this model a part of each (partial_rotary_factor).")
    return problems
