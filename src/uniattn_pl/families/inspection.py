"""Decoder families: the tested ones as a table, and where any of them keeps its layers and its attention."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

MODEL_TYPE_PREFIX = "uniattn_"
FAMILIES = {
    "llama": "Llama 2, Llama 3.x, SmolLM2",
    "mistral": "Mistral 7B",
    "qwen2": "Qwen 2, Qwen 2.5",
    "qwen3": "Qwen 3",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "phi3": "Phi-3, Phi-3.5, Phi-4",
    "olmo2": "OLMo 2",
    "apertus": "Apertus",
    "bamba": "Bamba",
    "cohere": "Command R",
    "cohere2": "Command R7B, Command A",
    "cwm": "Code World Model",
    "deepseek_v2": "DeepSeek V2",
    "deepseek_v3": "DeepSeek V3, R1, Kimi K2",
    "ernie4_5": "ERNIE 4.5",
    "ernie4_5_moe": "ERNIE 4.5 mixtures",
    "exaone4": "EXAONE 4",
    "falcon_h1": "Falcon-H1",
    "gemma": "Gemma",
    "glm": "GLM-4 9B (2024)",
    "glm4": "GLM-4 (2025), GLM-Z1",
    "glm4_moe": "GLM 4.5, 4.6, 4.7",
    "glm4_moe_lite": "GLM 4.7 Flash",
    "gpt_oss": "gpt-oss",
    "granite": "Granite 3",
    "granitemoe": "Granite 3 mixtures",
    "granitemoehybrid": "Granite 4",
    "helium": "Helium",
    "hunyuan_v1_dense": "Hunyuan",
    "jamba": "Jamba",
    "kimi_linear": "Kimi Linear",
    "lfm2": "LFM2",
    "llama4_text": "Llama 4 (text)",
    "minimax_m2": "MiniMax M2",
    "ministral3": "Ministral 3",
    "mixtral": "Mixtral",
    "nemotron_h": "Nemotron-H, Nemotron 3",
    "olmo": "OLMo",
    "olmo3": "OLMo 3",
    "olmo_hybrid": "OLMo Hybrid",
    "olmoe": "OLMoE",
    "phi": "Phi-1, Phi-2",
    "phimoe": "Phi-3.5 MoE",
    "qwen2_moe": "Qwen 1.5 and 2 mixtures",
    "qwen3_5_text": "Qwen 3.5 (text)",
    "qwen3_moe": "Qwen 3 mixtures",
    "qwen3_next": "Qwen 3 Next",
    "smollm3": "SmolLM3",
    "starcoder2": "StarCoder 2",
}
"""Tested model types (`config.model_type`) and the models that have them; others work where inspection finds all."""

ENCODER_DECODERS = {"t5": "T5, FLAN-T5", "t5gemma": "T5-Gemma", "bart": "BART"}
"""The tested ones with an encoder beside the decoder that is converted (families/encoder_decoder.py)."""

PUBLICATIONS = "uniattn_publications"
"""The keyword argument of a forward in which source layers leave what others read (modeling/attention/published.py)."""

LAYER_LISTS = ("layers", "block")
ATTENTION_PATHS = ("self_attn", "mixer", "layer.0.SelfAttention")
CROSS_ATTENTION_PATHS = ("encoder_attn", "cross_attn", "cross_attention", "layer.1.EncDecAttention")
POSITION_BIAS = "relative_attention_bias"
"""The part of T5's lowest attention that makes the position biases of all."""
OUTPUT_NAMES = ("o_proj", "out_proj", "dense", "o")
FUSED = "qkv_proj"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
KNOWN_PARTS = frozenset({*PROJECTIONS, FUSED, "q_norm", "k_norm", "w_c"})


def stock_model_type(config: PreTrainedConfig | type[PreTrainedConfig]) -> str:
    """The model type of the stock family, for a converted config too."""
    return str(config.model_type).removeprefix(MODEL_TYPE_PREFIX)


def decoder_of(model: Any) -> Any:
    """The decoder of a model, or of its text model, stock or converted, wrapped by peft or not.

    Llama-4 gives its language model whole for it, whose decoder is inside.
    """
    given = model.get_decoder()
    inside = getattr(given, "model", None)
    return inside if any(hasattr(inside, name) for name in LAYER_LISTS) else given


def decoder_layers(model: PreTrainedModel) -> Any:
    """The decoder layers, bottom first: an `nn.ModuleList`, whatever its family calls it."""
    return layers_of(decoder_of(model))


def layers_of(stack: nn.Module) -> Any:
    """The layers of a decoder or an encoder."""
    return next(found for name in LAYER_LISTS if (found := getattr(stack, name, None)) is not None)


def cross_attention_path(layer: nn.Module) -> str | None:
    """Where in a decoder layer its attention to an encoder's states is; None where it has none."""
    return _path_among(CROSS_ATTENTION_PATHS, layer)


def attention_path(layer: nn.Module) -> str | None:
    """Where in a decoder layer its self-attention is, or None: a hybrid's recurrence or convolution is no attention."""
    return _path_among(ATTENTION_PATHS, layer)


def _path_among(paths: Iterable[str], layer: nn.Module) -> str | None:
    for path in paths:
        found: Any = layer
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None and _calls_attention_interface(stock_class(found)):
            return path
    return None


def attention_of(layer: nn.Module) -> Any:
    """The self-attention of a decoder layer, or None where it has none."""
    path = attention_path(layer)
    return None if path is None else layer.get_submodule(path)


def cross_attention_of(layer: nn.Module) -> Any:
    """The attention of a decoder layer to an encoder's states, or None where it has none."""
    path = cross_attention_path(layer)
    return None if path is None else layer.get_submodule(path)


def attentions_of(model: PreTrainedModel) -> dict[int, Any]:
    """Layer -> its self-attention, of the layers that have one, bottom first."""
    found = {index: attention_of(layer) for index, layer in enumerate(decoder_layers(model))}
    return {index: attention for index, attention in found.items() if attention is not None}


def output_name(attention: nn.Module) -> str | None:
    """What a family calls W_o, of those that an attention has; None where it is dropped."""
    return next((name for name in OUTPUT_NAMES if hasattr(attention, name)), None)


def output_projection(attention: nn.Module) -> Any:
    """W_o [H * Dv, d] of an attention, whatever its family calls it."""
    name = output_name(attention)
    assert name is not None, "an attention that is not dropped has a W_o"
    return attention.get_submodule(name)


@cache
def _calls_attention_interface(attention_class: type) -> bool:
    """Whether a class attends through transformers' attention functions, by the names that its forwards look up."""
    forwards = (vars(base)["forward"] for base in attention_class.__mro__ if "forward" in vars(base))
    codes = (getattr(inspect.unwrap(forward), "__code__", None) for forward in forwards)
    return any("ALL_ATTENTION_FUNCTIONS" in code.co_names for code in codes if code is not None)


def family_module(attention: nn.Module) -> ModuleType:
    """The transformers module that defines the stock attention class (its eager kernel and rotary embedding)."""
    return sys.modules[stock_class(attention).__module__]


def stock_class(attention: Any) -> type:
    """The family's own attention class, also of an attention that was operated."""
    return getattr(attention, "stock", type(attention))
