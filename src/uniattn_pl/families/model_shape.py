"""How large a model is, by what a plan can take away: parameters per layer, windows, states beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.anatomy import Anatomy, anatomy_of_model, inspecting, weightless
from uniattn_pl.families.attention_parts import heads_of, linear_of, part_counts, serves
from uniattn_pl.families.encoder_decoder import decoder_config, has_encoder
from uniattn_pl.families.inspection import (
    FUSED,
    POSITION_BIAS,
    attention_of,
    attention_path,
    cross_attention_path,
    decoder_layers,
    decoder_of,
    layers_of,
    output_projection,
    stock_model_type,
)
from uniattn_pl.families.positions import positions_of
from uniattn_pl.families.recurrent_states import recurrent_states
from uniattn_pl.families.routed_experts import routed_experts
from uniattn_pl.plan import CrossAttention, Experts, LayerPlan, LayerShape, ModelShape
from uniattn_pl.plan.roles import KEY, OUTPUT, QUERY, VALUE
from uniattn_pl.plan.shape import NO_HEADS


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Count a model's parameters by role, on a weightless stock model of that config, itself converted or not.

    Raises:
        UserError: as `anatomy_of`, or a layer holds what no cost is known of.
    """
    with inspecting(config):
        return _counted(config, weightless(config))


def _counted(config: PreTrainedConfig, model: PreTrainedModel) -> ModelShape:
    anatomy = anatomy_of_model(model)
    own = decoder_config(model)
    pairs = zip(decoder_layers(model), windows_of(own), strict=True)
    try:
        layers = [_layer_shape(layer, anatomy, window) for layer, window in pairs]
        encoder = _encoder_shape(model) if has_encoder(config) else None
        outside = _count(model.parameters()) - _in_layers(decoder_layers(model)) - _of_encoder(model, encoder)
        for index, (state, wide) in recurrent_states(model).items():
            layers[index] = replace(layers[index], state=state, wide_state=wide)
    except UserError as error:
        raise UserError(f"model type '{stock_model_type(config)}' is not supported: {error}") from error
    return ModelShape(
        model_type=stock_model_type(config),
        hidden_size=own.hidden_size,
        vocab_size=own.vocab_size,
        embedding=outside,
        layers=tuple(layers),
        positions=positions_of(config),
        encoder=encoder,
    )


def stock_plan(model: PreTrainedModel) -> LayerPlan:
    """The plan of a stock model: every layer as it is."""
    try:
        layers = decoder_layers(model)
    except StopIteration:  # a family whose layers nobody knows; its own models can be measured all the same
        return LayerPlan.unmodified(model.config.get_text_config().num_hidden_layers)
    return LayerPlan.unmodified(len(layers), other=[i for i, layer in enumerate(layers) if attention_of(layer) is None])


def _encoder_shape(model: PreTrainedModel) -> ModelShape:
    """What an encoder has besides the embeddings that are the decoder's, too."""
    encoder: Any = model.get_encoder()
    shared = {id(p) for module in (decoder_of(model), model.get_output_embeddings()) for p in module.parameters()}
    own = [parameter for parameter in encoder.parameters() if id(parameter) not in shared]
    layers = layers_of(encoder)
    nothing = Anatomy((), None, fused=hasattr(attention_of(layers[0]), FUSED))
    return ModelShape(
        model_type=encoder.config.model_type,
        hidden_size=encoder.config.hidden_size,
        vocab_size=encoder.config.vocab_size,
        embedding=_count(own) - _in_layers(layers),
        layers=tuple(
            _layer_shape(layer, nothing, getattr(attention_of(layer), "sliding_window", None)) for layer in layers
        ),
    )


def _of_encoder(model: PreTrainedModel, encoder: ModelShape | None) -> int:
    return 0 if encoder is None else encoder.embedding + _in_layers(layers_of(model.get_encoder()))


def _in_layers(layers: Any) -> int:
    """Parameters that belong to single layers; T5's lowest one makes the position biases of all."""
    return _count(p for name, p in layers.named_parameters() if POSITION_BIAS not in name)


def windows_of(config: PreTrainedConfig) -> list[int | None]:
    """Per layer, the sliding window in tokens, or None: as transformers' own cache decides it."""
    from transformers import DynamicCache

    return [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]


def _layer_shape(layer: Any, anatomy: Anatomy, window: int | None) -> LayerShape:
    attention = attention_of(layer)
    if attention is None:
        return _without_attention(layer)
    counts = part_counts(attention)
    query_norm, key_norm = (_norms(attention, projection) for projection in (QUERY, KEY))
    query, key, value = (counts.get(frozenset({projection}), 0) for projection in (QUERY, KEY, VALUE))
    output = _count(output_projection(attention).parameters())
    gate = counts.get(frozenset({OUTPUT}), 0) - output
    attention_norms = sum(_count(layer.get_submodule(name).parameters()) for name in anatomy.attention_norms)
    experts, of_experts = _experts(layer)
    cross, of_cross = _cross_attention(layer, anatomy)
    matrices = _matrices(layer, {**of_experts, **of_cross})
    attributed = _count(attention.parameters()) + attention_norms + _count(matrices) + _count(of_experts.values())
    attributed += _count(of_cross.values())
    gate -= _count(p for name, p in attention.named_parameters() if POSITION_BIAS in name)
    return LayerShape(
        heads=heads_of(attention),
        query=query - query_norm,
        key=key - key_norm,
        value=value,
        output=output,
        query_norm=query_norm,
        key_norm=key_norm,
        latent=counts.get(frozenset({KEY, VALUE}), 0),
        gate=gate,
        attention_norms=attention_norms,
        feed_forward=_count(matrices),
        experts=experts,
        other=_count(layer.parameters()) - attributed,
        window=window,
        cross=cross,
    )


def _without_attention(layer: nn.Module) -> LayerShape:
    """A layer with a recurrence, a convolution or a feed-forward alone: nothing of it can be taken away."""
    experts, of_experts = _experts(layer)
    matrices = _matrices(layer, of_experts)
    other = _count(layer.parameters()) - _count(matrices) - _count(of_experts.values())
    return LayerShape(
        heads=NO_HEADS, query=0, key=0, value=0, output=0, feed_forward=_count(matrices), experts=experts, other=other
    )


def _matrices(layer: nn.Module, of_experts: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """What every token is multiplied with, outside the attention: all matrices but biases and tables of states.

    Raises:
        UserError: there are weights of more dimensions that are no convolution's.
    """
    inside = f"{attention_path(layer)}."
    convolutions = {f"{name}.weight" for name, module in layer.named_modules() if isinstance(module, nn.Conv1d)}
    outside = {n: p for n, p in layer.named_parameters() if not n.startswith(inside) and n not in of_experts}
    strange = [
        f"{name} {list(p.shape)}" for name, p in outside.items() if p.squeeze().dim() > 2 and name not in convolutions
    ]
    if strange:
        raise UserError(f"its layers have weights that are no matrices, of unknown cost: {', '.join(strange)}.")
    return [p for name, p in outside.items() if p.dim() == 2 and not name.endswith("bias")]


def _cross_attention(layer: nn.Module, anatomy: Anatomy) -> tuple[CrossAttention | None, dict[str, nn.Parameter]]:
    """The attention of a decoder layer to an encoder's states, if it has one, and its matrices by name."""
    path = cross_attention_path(layer)
    if path is None:
        return None, {}
    attention: Any = layer.get_submodule(path)
    query, key, value = (linear_of(attention, projection).weight.numel() for projection in (QUERY, KEY, VALUE))
    counts = part_counts(attention)
    of_map = sum(counts.get(frozenset({projection}), 0) for projection in (QUERY, KEY))
    of_map += sum(_count(layer.get_submodule(name).parameters()) for name in anatomy.cross_norms)
    cross = CrossAttention(
        heads=heads_of(attention),
        of_text=query + output_projection(attention).weight.numel(),
        of_source=key + value,
        query=query,
        key=key,
        beside_map=of_map - query - key,
    )
    weights = {f"{path}.{n}": p for n, p in attention.named_parameters() if p.dim() == 2 and POSITION_BIAS not in n}
    return cross, weights


def _experts(layer: nn.Module) -> tuple[Experts | None, dict[str, nn.Parameter]]:
    """The routed experts of a layer, if it has any, and their parameters by name."""
    found = list(routed_experts(layer))
    if not found:
        return None, {}
    if len(found) > 1:
        raise UserError("its layers have more than one set of routed experts, of unknown cost.")
    count, weights = found[0].count, found[0].weights
    matrices = _count(p for p in weights.values() if p.dim() > 2)
    biases = _count(p for p in weights.values() if p.dim() == 2)
    return Experts(count, found[0].per_token, matrices // count, biases // count), weights


def _norms(attention: nn.Module, projection: str) -> int:
    """Parameters of what norms queries or keys."""
    children = (child for name, child in attention.named_children() if serves(name) == {projection})
    return sum(_count(child.parameters()) for child in children if not isinstance(child, nn.Linear))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
