"""What the DeciLM format can say of a model, and which engine takes what of it.

Read in the engines' code, and where docs/serving.md says so run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniattn_pl.exporting.llama_blocks import block_problems, layer_list
from uniattn_pl.families.inspection import stock_model_type
from uniattn_pl.plan import LayerPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from uniattn_pl.plan import ModelShape

DECILM_ENGINES = ("vLLM", "SGLang", "TensorRT-LLM", "MLX-LM", "exllamav3")


def decilm_problems(plan: LayerPlan, config: PreTrainedConfig, shape: ModelShape) -> list[str]:
    """Why a model cannot be written as DeciLM, in words that name the layers and the engine that can; none: it can."""
    problems = block_problems("the DeciLM format", plan, config, shape)
    biased = [row.index for row in plan.rows if row.compensation is not None and row.compensation.bias]
    if biased:
        problems.append(f"{layer_list(biased)}: DeciLM's linear layers have no bias (W_c's); --format gguf takes it.")
    return problems


def engine_obstacles(plan: LayerPlan, config: PreTrainedConfig, shape: ModelShape) -> dict[str, list[str]]:
    """Of each engine of `DECILM_ENGINES` what keeps it from serving a folder of this model; none: it serves it."""
    linear = [row.index for row in plan.rows if row.compensated]
    first = next(row for row in plan.rows if row.traits.feed_forward)
    obstacles: dict[str, list[str]] = {engine: [] for engine in DECILM_ENGINES}
    if linear:
        for engine in ("vLLM", "SGLang", "exllamav3"):
            obstacles[engine].append(f"it has no linear layers ({layer_list(linear)})")
        obstacles["MLX-LM"].append("it calls a linear layer's weight self_attn.linear, not self_attn.linear_attn")
    if not first.traits.attends and not first.compensated:
        for engine in ("vLLM", "SGLang"):
            obstacles[engine].append("its first layer must attend")
    if has_biases(config):
        for engine in ("TensorRT-LLM", "MLX-LM", "exllamav3"):
            obstacles[engine].append("it reads no biases of queries, keys and values")
    elif getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        for engine in ("SGLang", "TensorRT-LLM", "exllamav3"):  # they load such a folder, and leave biases out
            obstacles[engine].append("it reads no biases of outputs and feed-forwards")
    heads = shape.layers[0].heads
    if heads.query_width != shape.hidden_size:
        obstacles["MLX-LM"].append("its heads have d / H numbers")
    return obstacles


def has_biases(config: PreTrainedConfig) -> bool:
    """Whether queries, keys and values have biases, and the output has none (Qwen2)."""
    return stock_model_type(config) == "qwen2"
