"""What a family's decoder layers are made of, found by building them without weights and watching one forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import auto_model, has_encoder, language_model
from uniattn_pl.families.inspection import (
    FAMILIES,
    FUSED,
    PUBLICATIONS,
    attention_of,
    attention_path,
    cross_attention_path,
    decoder_layers,
    stock_model_type,
)
from uniattn_pl.families.obstacles import config_obstacle, obstacles
from uniattn_pl.families.watched_layer import Call, watch_layer, watched_kernel


@dataclass(frozen=True)
class Anatomy:
    """Where a decoder layer keeps what a plan touches, as seen by watching one run.

    Args:
        attention_norms: norms that serve the attention alone, so go when the attention goes.
        norm_after_attention: the first norm after the attention. Its input is what W_c repairs: the residual stream
            (x' of paper eq. 2), or, where it belongs to the attention itself (Gemma, OLMo-2), the attention's output.
            None where there is none, as the feed-forward runs beside the attention or in a layer of its own (Cohere,
            Nemotron-H): then W_c repairs what leaves the layer.
        fused: q, k and v are rows of one projection (Phi-3).
        cross_norms: norms that serve the queries of cross-attention alone, so go when these go.
        norm_of_cross: the norm of the cross-attention's output before it joins the stream (T5Gemma).
        norm_after_cross: the first norm behind that: its input is the stream that both attentions have joined.
    """

    attention_norms: tuple[str, ...]
    norm_after_attention: str | None
    fused: bool
    cross_norms: tuple[str, ...] = ()
    norm_of_cross: str | None = None
    norm_after_cross: str | None = None


def anatomy_of(config: PreTrainedConfig) -> Anatomy:
    """Find out where a family's layers keep what plans touch, on a weightless model.

    Raises:
        UserError: the family does not follow transformers' attention interface; says what is missing.
    """
    with inspecting(config):
        return anatomy_of_model(weightless(config))


@contextmanager
def inspecting(config: PreTrainedConfig) -> Iterator[None]:
    """Whatever ends an inspection is a refusal of the family, and says so.

    Raises:
        UserError: instead of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    # The code of 189 families runs here, on configs that people wrote: any exception may come out of it.
    except Exception as error:
        raise _unsupported(config, f"inspecting it ends in {_in_short(error)}") from error


def anatomy_of_model(model: PreTrainedModel) -> Anatomy:
    """`anatomy_of` for a weightless model."""
    problems = obstacles(model)
    if problems:
        raise _unsupported(model.config, *problems)
    anatomies = {_watched_anatomy(model, layer) for layer in _kinds_of_layers(model)}
    refusals = sorted(found for found in anatomies if isinstance(found, str))
    if refusals:
        raise _unsupported(model.config, *refusals)
    if len(anatomies) > 1:
        raise _unsupported(model.config, "its layers keep their norms in different places")
    return anatomies.pop()  # type: ignore[return-value]


def _unsupported(config: PreTrainedConfig, *problems: str) -> UserError:
    return UserError(f"model type '{stock_model_type(config)}' is not supported: {'; '.join(problems)}.{_supported()}")


def _supported() -> str:
    return f" Supported: {', '.join(sorted(FAMILIES))}, and others whose attention follows the same interface."


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def weightless(config: PreTrainedConfig) -> PreTrainedModel:
    """The stock model of a config, stock or converted, on the meta device.

    Raises:
        UserError: transformers has no language model of that type, or it is one inside another.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    family = stock_model_type(config)
    # MusicGen's models have an encoder, by no default of their config, and are no language models
    if language_model(family) is None or (has_encoder(config) and not has_encoder(CONFIG_MAPPING[family])):
        raise UserError(f"model type '{family}' is no language model that transformers knows.{_supported()}")
    obstacle = config_obstacle(config)
    if obstacle is not None:
        raise _unsupported(config, obstacle)
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    # A new config: building a model on one changes it.
    config = AutoConfig.for_model(family, **fields)
    with torch.device("meta"):
        model: PreTrainedModel = auto_model(config).from_config(config, attn_implementation="eager")
    return model


def _kinds_of_layers(model: PreTrainedModel) -> list[nn.Module]:
    """One decoder layer of each kind that attends: of equal classes, with children of equal names."""
    kinds = {
        (type(layer), type(attention_of(layer)), tuple(name for name, _ in layer.named_children())): layer
        for layer in reversed(decoder_layers(model))
        if attention_of(layer) is not None
    }
    return list(kinds.values())


def _watched_anatomy(model: PreTrainedModel, layer: Any) -> Anatomy | str:
    """The anatomy as one forward shows it, or why it cannot be what a plan needs."""
    attention, path = attention_of(layer), str(attention_path(layer))
    kernel: list[Mapping[str, Any]] = []
    try:
        with watched_kernel(attention, kernel):
            calls, reads = watch_layer(model, layer, path)
    # as `inspecting`: the family's own code runs
    except Exception as error:
        return f"a forward of its decoder cannot be watched ({_in_short(error)})"
    if not any(PUBLICATIONS in keywords for keywords in kernel):
        return "its decoder does not pass keyword arguments on to the attention, or this to the function that attends"
    of_attention = next(call for call in calls if call.name == path)
    norms = [call for call in calls if "norm" in call.name]
    users = [call.input for call in calls if call is not of_attention]
    before = [call for call in norms if call.output is of_attention.input]
    # one that the feed-forward or a recurrence reads, too, stays where the attention goes
    alone = [call.name for call in before if not any(read is call.output for read in users)]
    behind = calls[calls.index(of_attention) + 1 :]
    after = [call for call in behind if "norm" in call.name and call.input is not calls[0].input]
    if "weight" in inspect.unwrap(type(layer).forward).__code__.co_names:  # asked for its dtype (Nemotron-H)
        alone = []
    own = [after[0].name] if after and after[0].input is of_attention.output else []
    found = Anatomy((*alone, *own), after[0].name if after else None, fused=hasattr(attention, FUSED))
    return _with_cross_attention(found, calls, reads, cross_attention_path(layer))


def _with_cross_attention(anatomy: Anatomy, calls: list[Call], reads: list[torch.Tensor], path: str | None) -> Anatomy:
    """What the same calls show of the attention to an encoder's states; it is the other's where there is none."""
    of_cross = next((call for call in calls if call.name == path and call.output is not None), None)
    if of_cross is None:
        return anatomy
    norms = [call for call in calls if "norm" in call.name]
    before = [call for call in norms if call.output is of_cross.input]
    # what is read elsewhere, too, is the stream (BART, which norms behind each attention)
    alone = [call.name for call in before if not any(read is call.output for read in reads)]
    begun = [call is of_cross for call in calls].index(True)
    behind = [call for call in calls[begun + 1 :] if "norm" in call.name]
    own = [call.name for call in behind if call.input is of_cross.output]
    after = [call.name for call in behind if call.input is not of_cross.output]
    return replace(
        anatomy,
        cross_norms=tuple(alone),
        norm_of_cross=own[0] if own else None,
        norm_after_cross=after[0] if after else None,
    )
