"""Decoder families: the tested ones as a table, and where any of them keeps its layers and its attention."""

from __future__ import annotations

import sys
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
}
"""Tested model types (`config.model_type`) and the models that have them; others work where inspection finds all."""

PUBLICATIONS = "uniattn_publications"
"""The keyword argument of a forward in which source layers leave what others read (modeling/attention/published.py)."""

FUSED = "qkv_proj"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
KNOWN_PARTS = frozenset({*PROJECTIONS, FUSED, "q_norm", "k_norm", "w_c"})


def stock_model_type(config: PreTrainedConfig) -> str:
    """The model type of the stock family, for a converted config too."""
    return str(config.model_type).removeprefix(MODEL_TYPE_PREFIX)


def decoder_layers(model: PreTrainedModel) -> Any:
    """The decoder layers, bottom first: an `nn.ModuleList` whose items have a `self_attn`."""
    return model.get_decoder().layers


def family_module(attention: nn.Module) -> ModuleType:
    """The transformers module that defines the stock attention class (its eager kernel and rotary embedding)."""
    return sys.modules[stock_class(attention).__module__]


def stock_class(attention: Any) -> type:
    """The family's own attention class, also of an attention that was operated."""
    return getattr(attention, "stock", type(attention))
