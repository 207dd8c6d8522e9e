"""Giving a stock skeleton what its plan says: operated attentions, publishing sources, a fitted cache."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.modeling.attention import PREFIX, STATE_KEY, SharedState, operate
from uniattn_pl.modeling.cache import fit_cache
from uniattn_pl.modeling.families import decoder_layers, family_of
from uniattn_pl.plan import LayerPlan


def install(model: PreTrainedModel, plan: LayerPlan) -> None:
    """Give every layer of a stock skeleton what the plan says; weights may be on the meta device."""
    config, layers = model.config, decoder_layers(model)
    if getattr(config, "attention_dropout", 0.0):
        raise UserError(
            f"attention_dropout is {config.attention_dropout}; a shared attention map needs 0 "
            "(a replayed map would be dropped out differently in every layer)."
        )
    backend = config._attn_implementation or "eager"
    config._attn_implementation = PREFIX + backend.removeprefix(PREFIX)
    norms = family_of(config).attention_norms
    for row, layer in zip(plan.rows, layers, strict=True):
        attention = layer.self_attn
        attention.publishes = _publishes(plan, row.index)
        if row.operated:
            operate(attention, row, config.hidden_size)
        if row.dropped and not row.compensated:
            # Its only reader is gone; left in place it would be a parameter without gradient.
            for name in norms:
                setattr(layer, name, nn.Identity())
    decoder = model.get_decoder()
    decoder.layer_plan = plan
    decoder.register_forward_pre_hook(_prepare_forward, with_kwargs=True)


def _publishes(plan: LayerPlan, index: int) -> frozenset[str]:
    sources = {"map": plan.map_sources, "key_value": plan.key_value_sources}
    return frozenset(kind for kind, layers in sources.items() if index in layers)


def _prepare_forward(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give this forward a fresh shared state, and a cache fitted to the plan where one is used."""
    kwargs = {**kwargs, STATE_KEY: SharedState()}
    cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
    use_cache = decoder.config.use_cache if use_cache is None else use_cache
    checkpointing = decoder.training and getattr(decoder, "gradient_checkpointing", False)
    if cache is None and use_cache and not checkpointing:
        cache = kwargs["past_key_values"] = DynamicCache(config=decoder.config)
    if cache is not None:
        fit_cache(cache, decoder.layer_plan)
    return args, kwargs
