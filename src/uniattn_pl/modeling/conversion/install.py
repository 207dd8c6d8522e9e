"""Giving a stock skeleton what its plan says: operated attentions, publishing sources, a fitted cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.anatomy import anatomy_of
from uniattn_pl.families.attention_kernels import ATTENTION_BACKENDS
from uniattn_pl.families.attention_parts import LATENT_IN
from uniattn_pl.families.encoder_decoder import decoder_config, has_encoder, reading_config
from uniattn_pl.families.inspection import (
    PUBLICATIONS,
    attention_of,
    attentions_of,
    cross_attention_of,
    decoder_layers,
    decoder_of,
)
from uniattn_pl.kernels.stock import backend_name, has_maps, publish
from uniattn_pl.modeling.attention.cross_maps import ATTENDS_TO_ENCODER
from uniattn_pl.modeling.attention.operate import is_forwarded, operate, operate_cross
from uniattn_pl.modeling.attention.operated import add_late_correction
from uniattn_pl.modeling.attention.position_bias import MAKES_BIAS, hand_on_position_bias
from uniattn_pl.modeling.attention.published import Publications
from uniattn_pl.modeling.attention.publishing import publish_positions
from uniattn_pl.modeling.attention.recorded_maps import without_placeholders
from uniattn_pl.modeling.attention.skipped_block import skip_block
from uniattn_pl.modeling.attention.window_attention import no_windows
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.caches.plan_cache import fit_cache, map_buffers, new_cache
from uniattn_pl.modeling.length_rotations import forget_lengths
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.roles import KEY_VALUE, MAP

GROUPS = "num_key_value_groups"
DROPOUT = "dropout"  # the rate at which an attention without a config of its own drops weights of its map


def install(model: PreTrainedModel, plan: LayerPlan) -> None:
    """Give every layer what the plan says, on a stock skeleton (also on the meta device) or on a former plan's model.

    Raises:
        UserError: the model drops attention weights at random, or it has another depth.
    """
    decoder, layers = decoder_of(model), decoder_layers(model)
    check_convertible(model, plan)
    own = decoder_config(model)
    for config in (model.config, own) if has_encoder(model.config) else (own,):
        publish(config)
    former: LayerPlan | None = getattr(decoder, "layer_plan", None)
    hand_on_position_bias([attention_of(layer) for layer in layers], plan)
    for row, layer in zip(plan.rows, layers, strict=True):
        attention = attention_of(layer)
        if attention is None:
            continue
        publishes = plan.read_from(row.index)
        if KEY_VALUE in publishes and (former is None or KEY_VALUE not in former.read_from(row.index)):
            attention.register_forward_pre_hook(publish_positions, with_kwargs=True)
        attention.publishes, attention.settings = publishes, reading_config(model.config)
        if isinstance(getattr(attention, DROPOUT, None), float):  # T5's one rate; the rest of it stays
            setattr(attention, DROPOUT, 0.0)
        attention.last_map_reader = plan.last_map_reader(row.index)
        attention.map_readers = sum(reader.traits.reads == MAP for reader in plan.readers(row.index))
        attention.key_root = plan.root(row.index)
        if row.operated and (former is None or former.rows[row.index] != row):
            operate(attention, row)
            if not row.traits.feed_forward:
                skip_block(layer)
            if row.compensation is not None and row.compensation.output == "layer_output":
                layer.register_forward_hook(add_late_correction, with_kwargs=True)
        if row.source is not None and row.traits.reads == KEY_VALUE:
            groups = getattr(attention_of(layers[row.source]), GROUPS, None)
            if groups is not None:  # whose heads may have been merged
                setattr(attention, GROUPS, groups)
    _install_cross(model, plan, former)
    _remove_idle_norms(model, plan)
    decoder.layer_plan = plan
    decoder.caches_latent = any(hasattr(attention, LATENT_IN) for attention in attentions_of(model).values())
    forget_lengths(decoder)
    if former is None:
        decoder.register_forward_pre_hook(_prepare_forward, with_kwargs=True)
        decoder.register_forward_hook(_attentions_per_layer)


def _install_cross(model: PreTrainedModel, plan: LayerPlan, former: LayerPlan | None) -> None:
    """Give the cross-attention of every layer what the plan says; nothing in a decoder alone."""
    anatomy = anatomy_of(model.config) if any(row.cross_map for row in plan.rows) else None
    for row, layer in zip(plan.rows, decoder_layers(model), strict=True):
        cross = cross_attention_of(layer) if has_encoder(model.config) else None
        if cross is None:
            continue
        readers = plan.cross_readers(row.index)
        setattr(cross, ATTENDS_TO_ENCODER, True)
        cross.publishes, cross.settings = frozenset([MAP] if readers else []), reading_config(model.config)
        cross.map_readers, cross.last_map_reader = len(readers), max(readers, default=row.index)
        if (readers or row.cross_map) and isinstance(getattr(cross, DROPOUT, None), float):
            setattr(cross, DROPOUT, 0.0)
        if anatomy is not None and row.cross_map and (former is None or not former.rows[row.index].cross_map):
            operate_cross(cross, row)
            remove_norms(layer, anatomy.cross_norms)
            if anatomy.norm_of_cross is not None:
                cross.add_behind(layer.get_submodule(anatomy.norm_of_cross))


def check_convertible(model: PreTrainedModel, plan: LayerPlan) -> None:
    """Raise UserError when a model cannot have this plan, with every reason."""
    config, depth, problems = decoder_config(model), len(decoder_layers(model)), []
    if getattr(config, "attention_dropout", 0.0):
        problems.append(
            f"attention_dropout is {config.attention_dropout}; a shared attention map needs 0 "
            "(a replayed map would be dropped out differently in every layer)."
        )
    kernel = backend_name(config)
    if "/" in kernel:
        problems.append(f"its kernel is the hub's '{kernel}'; converted models call {', '.join(ATTENTION_BACKENDS)}.")
    if any(row.window is not None for row in plan.rows) and not has_maps(config) and "/" not in kernel:
        problems.append(no_windows(config))
    if any(row.window is not None for row in plan.rows) and hasattr(attention_of(decoder_layers(model)[0]), MAKES_BIAS):
        problems.append(
            "its attention adds biases by the distance of all tokens there were, of which a window keeps few."
        )
    if getattr(config, "decoder_layerdrop", 0.0):
        problems.append(
            f"decoder_layerdrop is {config.decoder_layerdrop}; layers that others read from are not left out at random."
        )
    if len(plan.rows) != depth:
        problems.append(f"the plan has {len(plan.rows)} layers, the model {depth}.")
    else:
        problems += _misplaced(model, plan)
    if problems:
        raise UserError(*problems)


def _misplaced(model: PreTrainedModel, plan: LayerPlan) -> list[str]:
    """What to tell where a W_c would read or add inside an attention that runs its family's own forward."""
    inside = [
        row.index
        for row in plan.rows
        if row.compensation is not None
        and row.compensation.needed_projections
        and is_forwarded(attention_of(decoder_layers(model)[row.index]), row)
    ]
    if not inside:
        return []
    return [
        f"the attention of layers {', '.join(map(str, inside))} does more than plans know, and keeps its family's "
        "own forward, inside which a W_c can neither read nor add; have it read attention_input and add to "
        "attention_output."
    ]


def _remove_idle_norms(model: PreTrainedModel, plan: LayerPlan) -> None:
    """Without attention its norms have no reader; left in place they would be parameters without gradient."""
    idle = [row.index for row in plan.rows if row.operated and row.traits.feed_forward and not row.reads_stream]
    names = anatomy_of(model.config).attention_norms if idle else ()
    for index in idle:
        remove_norms(decoder_layers(model)[index], names)


def remove_norms(layer: nn.Module, names: Iterable[str]) -> None:
    """Let the named norms of a decoder layer pass on what they get."""
    for name in names:
        layer.set_submodule(name, nn.Identity())


def _prepare_forward(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give this forward fresh publications, and a cache fitted to the plan where one is used."""
    cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
    use_cache = decoder.config.use_cache if use_cache is None else use_cache
    checkpointing = decoder.training and getattr(decoder, "gradient_checkpointing", False)
    if cache is None and use_cache and not checkpointing:
        cache = new_cache(decoder.config, beside_encoder=kwargs.get("encoder_hidden_states") is not None)
        kwargs = {**kwargs, "past_key_values": cache}
    buffers = None
    if cache is not None:
        buffers = map_buffers(fit_cache(cache, decoder.layer_plan, latent=decoder.caches_latent))
    eviction = cache if isinstance(cache, H2OCache) else None
    if eviction is not None:
        inputs = next(t for t in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if t is not None)
        eviction.begin_forward(inputs.shape[1])
    return args, {**kwargs, PUBLICATIONS: Publications(buffers, eviction)}


def _attentions_per_layer(decoder: Any, args: tuple[Any, ...], output: Any) -> Any:
    """Let `output_attentions` give None for a layer without a map: its place was kept (recorded_maps.py)."""
    plan: LayerPlan = decoder.layer_plan
    if isinstance(output, tuple):  # return_dict=False
        return tuple(without_placeholders(item, plan) if isinstance(item, tuple) else item for item in output)
    for name in ("attentions", "cross_attentions"):
        if getattr(output, name, None) is not None:
            setattr(output, name, without_placeholders(getattr(output, name), plan))
    return output
