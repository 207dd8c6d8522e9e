"""What formats whose blocks are those of a Llama, each with sizes of its own, can say of a plan.

Both that we write, llama.cpp's `deci` and DeciLM, come from the same models (Llama-3.1-Nemotron): a block attends with
its own number of heads of keys and values, or has a linear layer in the attention's place, or neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from uniattn_pl.families.inspection import stock_model_type
from uniattn_pl.plan import LayerPlan, LayerRow

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from uniattn_pl.plan import ModelShape

LLAMA_BLOCKS = ("llama", "mistral", "qwen2")
"""Families whose layers are blocks of a Llama; Qwen2's have biases of queries, keys and values."""

SERVED_BY_PLUGIN = "vLLM serves it with this package's plugin (docs/serving.md)"
_LINEAR = ("attention_input", "attention_output")
_LACKING = {
    "reuse": "no attention map to take from another layer",
    "share_kv": "no keys and values to take from another layer",
    "window": "no window",
}


def block_problems(form: str, plan: LayerPlan, config: PreTrainedConfig, shape: ModelShape) -> list[str]:
    """Why a model cannot be written as Llama blocks, naming the layers and the engine that can; none: it can.

    Args:
        form: the format, in words.
        plan: of the model.
        config: its config, converted or stock.
        shape: of the stock model.
    """
    family = stock_model_type(config)
    if family not in LLAMA_BLOCKS:
        return [
            f"a {family} model{_known_obstacles(config)} cannot be written as {form}; "
            f"families: {', '.join(LLAMA_BLOCKS)}; {SERVED_BY_PLUGIN}."
        ]
    problems = []
    if config.hidden_act != "silu":
        problems.append(f"{form} has feed-forwards with silu, and this model has hidden_act '{config.hidden_act}'.")
    lacking: dict[str, list[int]] = {}
    for row, layer in zip(plan.rows, shape.layers, strict=True):
        reason = _lacking(row)
        if reason is None and layer.window is not None:
            reason = f"no window, and the family's own attention sees {layer.window} tokens (sliding_window)"
        if reason is not None:
            lacking.setdefault(reason, []).append(row.index)
    problems += [
        f"{layer_list(layers)}: {form} has {reason}; {SERVED_BY_PLUGIN}." for reason, layers in lacking.items()
    ]
    return problems


def _lacking(row: LayerRow) -> str | None:
    """What Llama blocks lack for a layer."""
    compensation = row.compensation
    if row.role in _LACKING:
        return _LACKING[row.role]
    if compensation is None:
        return None
    if row.traits.attends:
        return "no linear layer beside an attention (W_c)"
    if not row.traits.feed_forward:
        return "no linear layer that reads the stream without a norm (W_c of a block that is left out)"
    if (compensation.input, compensation.output) != _LINEAR:
        return f"no linear layer that reads {compensation.input} and adds to {compensation.output} (W_c)"
    return None


def _known_obstacles(config: PreTrainedConfig) -> str:
    """What is known to be in the way of a family, in brackets."""
    reasons = []
    if stock_model_type(config).startswith(("qwen3", "olmo2", "olmo3", "gemma3")):
        reasons.append("norms of queries and keys")
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        reasons.append("soft caps")
    return f" (it has {' and '.join(reasons)})" if reasons else ""


def linear_matrix(w_c: Any) -> torch.Tensor:
    """W_c [out, in] as one matrix: of low rank the product of its two, since a linear layer of these formats is one."""
    if not hasattr(w_c, "down"):
        return w_c.weight
    product: torch.Tensor = w_c.up.weight.double() @ w_c.down.weight.double()
    return product.to(w_c.up.weight.dtype)


def layer_list(indices: Sequence[int]) -> str:
    """`layer 5`, or `layers 3, 5-7`; indices (0-based) ascend."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    listed = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"layer {listed}" if len(indices) == 1 else f"layers {listed}"
