"""What differs between decoder families, as data; everything else is found by inspecting the model."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.plan import LayerShape, ModelShape

MODEL_TYPE_PREFIX = "uniattn_"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Family:
    """A transformers model type whose attention follows the shared interface.

    Args:
        model_type: `config.model_type`.
        attention_norms: norms of a decoder layer that serve its attention alone, so go when the attention goes.
        norm_after_attention: the norm whose input W_c's output is added to: the residual stream (x' of paper eq. 2),
            or, where a norm of its own follows the attention (Gemma-2), the attention's output.
    """

    model_type: str
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    norm_after_attention: str = "post_attention_layernorm"


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
        Family("gemma2", attention_norms=("input_layernorm", "post_attention_layernorm")),
    )
}


def family_of(config: PreTrainedConfig) -> Family:
    """Return the family of a model. Raises UserError for one that is not supported."""
    model_type = config.model_type.removeprefix(MODEL_TYPE_PREFIX)
    if model_type not in FAMILIES:
        raise UserError(
            f"model type '{model_type}' is not supported.{did_you_mean(model_type, FAMILIES)} "
            f"Supported: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]


def decoder_layers(model: PreTrainedModel) -> Any:
    """The decoder layers, bottom first: an `nn.ModuleList` whose items have a `self_attn`."""
    return model.get_decoder().layers


def family_module(attention: nn.Module) -> ModuleType:
    """The transformers module that defines the stock attention class (its eager kernel and rotary embedding)."""
    return sys.modules[getattr(type(attention), "stock_module", type(attention).__module__)]


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Count a model's parameters by role, on a weightless stock model of that config, itself converted or not."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family = family_of(config)
    if config.model_type != family.model_type:
        fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        config = AutoConfig.for_model(family.model_type, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    windows = _windows(config)
    layers = tuple(
        _layer_shape(layer, family, window) for layer, window in zip(decoder_layers(model), windows, strict=True)
    )
    in_layers = _count(decoder_layers(model).parameters())
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        model_type=family.model_type,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        embedding=_count(model.parameters()) - in_layers,
        layers=layers,
    )


def _windows(config: PreTrainedConfig) -> list[int | None]:
    """Per layer, the sliding window in tokens, or None: as transformers' own cache decides it."""
    from transformers import DynamicCache

    return [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]


def _layer_shape(layer: Any, family: Family, window: int | None) -> LayerShape:
    attention = layer.self_attn
    sizes = {name: _count(getattr(attention, name).parameters()) for name in PROJECTIONS}
    norms = {n: _count(getattr(attention, n).parameters()) for n in ("q_norm", "k_norm") if hasattr(attention, n)}
    attention_norms = sum(_count(getattr(layer, name).parameters()) for name in family.attention_norms)
    feed_forward = sum(p.numel() for p in layer.mlp.parameters() if p.dim() == 2)
    known = sum(sizes.values()) + sum(norms.values()) + attention_norms + feed_forward
    return LayerShape(
        query=sizes["q_proj"],
        key=sizes["k_proj"],
        value=sizes["v_proj"],
        output=sizes["o_proj"],
        query_norm=norms.get("q_norm", 0),
        key_norm=norms.get("k_norm", 0),
        attention_norms=attention_norms,
        feed_forward=feed_forward,
        other=_count(layer.parameters()) - known,
        window=window,
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
