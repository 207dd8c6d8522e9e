"""What a family's decoder layers are made of, found by building them without weights and watching one forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import auto_model, beside_encoder, has_encoder, language_model
from uniattn_pl.families.inspection import (
    FAMILIES,
    FUSED,
    PUBLICATIONS,
    attention_of,
    attention_path,
    decoder_layers,
    stock_model_type,
)
from uniattn_pl.families.obstacles import config_obstacle, obstacles
from uniattn_pl.families.passed_layers import HANDED_ON, passed_by

WATCHED = "uniattn_watched"


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
    """

    attention_norms: tuple[str, ...]
    norm_after_attention: str | None
    fused: bool


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
        with _watched_kernel(attention, kernel):
            calls = _watch(model, layer, path)
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
    return Anatomy((*alone, *own), after[0].name if after else None, fused=hasattr(attention, FUSED))


@contextmanager
def _watched_kernel(attention: Any, keywords: list[Mapping[str, Any]]) -> Iterator[None]:
    """Let an attention call a function that attends to nothing and notes what it is told by keyword."""

    def attend(
        _: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        keywords.append(kwargs)
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None  # [B, L, H, Dv]

    stock = attention.config._attn_implementation
    AttentionInterface.register(WATCHED, attend)
    attention.config._attn_implementation = WATCHED
    try:
        yield
    finally:
        attention.config._attn_implementation = stock


@dataclass(frozen=True)
class _Call:
    """One call of a child module: its first input, and its first output where it came to one."""

    name: str
    input: Any
    output: Any = None


class _SeenEnough(Exception):
    """Ends a watched forward before the feed-forward, which not every family can run without weights."""


def _watch(model: PreTrainedModel, layer: nn.Module, path: str) -> list[_Call]:
    """The calls of a layer's attention, of what stands beside it and of the layer's children, in order of their begin,
    up to the norm after the attention, or to what cannot run without weights."""
    begun: list[_Call] = []
    handles = []
    for name, child in layer.named_modules():
        if not name or name.count(".") not in {0, path.count(".")} or name.startswith(f"{path}."):
            continue

        def begin(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            begun.append(_Call(name, args[0] if args else next(iter(kwargs.values()), None)))
            if "norm" in name and path in [call.name for call in begun] and begun[-1].input is not begun[0].input:
                raise _SeenEnough

        def end(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            last = max(index for index, call in enumerate(begun) if call.name == name)
            begun[last] = replace(begun[last], output=output[0] if isinstance(output, tuple) else output)

        handles += [child.register_forward_pre_hook(begin, with_kwargs=True), child.register_forward_hook(end)]
    args, kwargs = _call_of_layer(model, layer)
    try:
        layer(*args, **kwargs)
    except _SeenEnough:
        pass
    except Exception:
        if path not in [call.name for call in begun if call.output is not None]:
            raise
    finally:
        for handle in handles:
            handle.remove()
    return begun


def _call_of_layer(model: PreTrainedModel, layer: nn.Module) -> tuple[Any, Any]:
    """Positional and keyword arguments that the decoder gives a layer; those below it hand on what they get."""
    seen: list[tuple[Any, Any]] = []

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((args, kwargs))
        raise _SeenEnough

    for module in model.modules():
        # Some rotations look at the positions to choose their frequencies; without weights there are none to look at.
        kind = getattr(module, "rope_type", None)
        if kind is not None:
            module.rope_type = dict.fromkeys(kind, "default") if isinstance(kind, dict) else "default"  # type: ignore[assignment]
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    inputs = {"input_ids": ids, "use_cache": False, PUBLICATIONS: None, **beside_encoder(model, 2)}
    # With a mask and the eager kernel transformers looks at no values, of which meta tensors have none; some families
    # look at the mask themselves (Granite 4), and not where there is none.
    masks: tuple[dict[str, Any], ...] = ({"attention_mask": torch.ones_like(ids)}, {})
    error: Exception = RuntimeError("its layers are not reached")
    handle = layer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        for handed_on, mask in product(HANDED_ON, masks):
            try:
                with passed_by(decoder_layers(model), handed_on, but=layer):
                    model.get_decoder()(**mask, **inputs)
            except _SeenEnough:
                hidden = next(iter([*seen[-1][0], *seen[-1][1].values()]), None)
                if isinstance(hidden, torch.Tensor) and hidden.dim() == 3:
                    return seen[-1]
            # the family's own code: what it does not take shows in whatever it raises
            except Exception as failed:
                error = failed
    finally:
        handle.remove()
    raise error
