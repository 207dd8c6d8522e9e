"""What a GGUF file of llama.cpp's `deci` architecture can say of a plan and of a family, and what it cannot.

`deci` is the architecture of Llama-3.1-Nemotron, whose blocks differ: each has its own heads of keys and values, none of
them (then W_o alone is applied to the normed stream, a linear layer), or no attention at all. It knows no layer that
reads another's cache or map, no window, no norm of queries and keys and no soft cap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniattn_pl.families.inspection import stock_model_type
from uniattn_pl.plan import LayerPlan, LayerRow

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from uniattn_pl.plan import ModelShape

DECI_FAMILIES = ("llama", "mistral", "qwen2")
DECI_ROTATIONS = ("default", "linear", "llama3")
DECI_LINEAR = ("attention_input", "attention_output")
INSTEAD = "vLLM serves it with this package's plugin (docs/serving.md)"


def deci_problems(plan: LayerPlan, config: PreTrainedConfig, shape: ModelShape) -> list[str]:
    """Why a model cannot be written for `deci`, in words that name the layers and the engine that can; none: it can."""
    problems: dict[str, list[int]] = {}
    for row in plan.rows:
        for reason in _row_problems(row):
            problems.setdefault(reason, []).append(row.index)
    of_layers = [
        f"{_layers(layers)}: llama.cpp's deci architecture has {reason}; {INSTEAD}."
        for reason, layers in problems.items()
    ]
    return _family_problems(config, shape) + of_layers


def _row_problems(row: LayerRow) -> list[str]:
    """What `deci` lacks for a layer."""
    without = {
        "reuse": "no attention map to take from another layer",
        "share_kv": "no keys and values to take from another layer",
        "window": "no window",
    }
    if row.role in without:
        return [without[row.role]]
    compensation = row.compensation
    if compensation is None:
        return []
    if row.traits.attends:
        return ["no linear layer beside an attention (W_c)"]
    if (compensation.input, compensation.output) != DECI_LINEAR:
        return [f"no linear layer that reads {compensation.input} and adds to {compensation.output} (W_c)"]
    return []


def _family_problems(config: PreTrainedConfig, shape: ModelShape) -> list[str]:
    """What `deci` lacks for a family, or for the sizes and switches of this model."""
    family = stock_model_type(config)
    if family not in DECI_FAMILIES:
        return [
            f"a {family} model{_lacking(config)} cannot be written for llama.cpp's deci architecture; "
            f"families: {', '.join(DECI_FAMILIES)}; {INSTEAD}, or llama.cpp's own converter the unmodified model."
        ]
    problems = []
    rotation = getattr(config, "rope_parameters", None) or {}
    kind = rotation.get("rope_type", "default")
    if kind not in DECI_ROTATIONS:
        problems.append(f"rope_type '{kind}' is not written to GGUF; these are: {', '.join(DECI_ROTATIONS)}.")
    if rotation.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append("deci rotates whole heads, and this model a part of each (partial_rotary_factor).")
    if config.hidden_act != "silu":
        problems.append(f"deci's feed-forward has silu, and this model hidden_act '{config.hidden_act}'.")
    windowed = [index for index, layer in enumerate(shape.layers) if layer.window is not None]
    if windowed:
        problems.append(
            f"{_layers(windowed)}: the family's own sliding window of {shape.layers[windowed[0]].window} tokens; deci has "
            "no window. Texts no longer than that are the same without it: sliding_window null in its config.json."
        )
    return problems


def _lacking(config: PreTrainedConfig) -> str:
    """What is known to be in the way of a family, by the names of its config."""
    family = stock_model_type(config)
    reasons = []
    if family.startswith(("qwen3", "olmo2", "olmo3", "gemma3")):
        reasons.append("norms of queries and keys")
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        reasons.append("soft caps")
    return f" (it has {' and '.join(reasons)})" if reasons else ""


def _layers(indices: list[int]) -> str:
    """`layer 5`, or `layers 3, 5-7`."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    listed = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"layer {listed}" if len(indices) == 1 else f"layers {listed}"
