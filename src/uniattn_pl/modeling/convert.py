"""From a stock model and a plan to the model the plan describes."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedModel

from uniattn_pl.architectures import get_architecture
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.modeling.attention import PREFIX, STATE_KEY, SharedState, operate
from uniattn_pl.modeling.cache import fit_cache
from uniattn_pl.modeling.families import decoder_layers, family_of, shape_of
from uniattn_pl.plan import LayerPlan


def apply_architecture(model: PreTrainedModel, name: str, **options: Any) -> PreTrainedModel:
    """Convert `model` in place to the architecture `name` and return it; every W_c starts at zero.

    Args:
        model: a stock transformers model of a supported family.
        name: an architecture of the registry.
        options: fields of that architecture's dataclass.

    Raises:
        UserError: unknown architecture or option, or options that do not fit the model.
    """
    architecture = get_architecture(name)
    allowed = list(architecture.__dataclass_fields__)  # type: ignore[attr-defined]
    unknown = [option for option in options if option not in allowed]
    if unknown:
        known = ", ".join(allowed) or "none"
        raise UserError(*(f"{name} has no option '{o}'.{did_you_mean(o, allowed)} Options: {known}." for o in unknown))
    return apply_plan(model, architecture(**options).compile(shape_of(model.config)))


def apply_plan(model: PreTrainedModel, plan: LayerPlan) -> PreTrainedModel:
    """Convert `model` in place to `plan` and return it; an unmodified plan leaves the model stock.

    Raises:
        UserError: the plan does not fit the model, or the model cannot be converted.
    """
    from uniattn_pl.modeling.saving import auto_classes

    if getattr(model, "layer_plan", None) is not None:
        raise UserError("this model already has a layer plan; start from the stock model.")
    plan.check(shape_of(model.config))
    if not plan.operated:
        model.layer_plan = plan  # type: ignore[assignment]
        return model
    config_class, model_class = auto_classes(type(model))
    model.config.__class__, model.__class__ = config_class, model_class
    vars(model.config)["model_type"] = config_class.model_type
    model.config.layer_plan = plan.to_dict()
    model.config.reuse_mode = "auto"
    install(model, plan)
    return model


def converted_copy(model: PreTrainedModel, plan: LayerPlan) -> PreTrainedModel:
    """A converted model beside the original one that shares its weights, so costs no memory but W_c."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return apply_plan(copy.deepcopy(model, shared), plan)


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
