"""What a family's decoder layers are made of, found by building them without weights and watching one forward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import FAMILIES, FUSED, PUBLICATIONS, attention_of, decoder_layers, stock_model_type
from uniattn_pl.families.obstacles import config_obstacle, obstacles


@dataclass(frozen=True)
class Anatomy:
    """Where a decoder layer keeps what a plan touches, as seen by watching one run.

    Args:
        attention_norms: norms that serve the attention alone, so go when the attention goes.
        norm_after_attention: the first norm after the attention. Its input is what W_c repairs: the residual stream
            (x' of paper eq. 2), or, where it belongs to the attention itself (Gemma, OLMo-2), the attention's output.
        fused: q, k and v are rows of one projection (Phi-3).
    """

    attention_norms: tuple[str, ...]
    norm_after_attention: str
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
        UserError: transformers has no causal language model of that type, or it is one inside another.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    family = stock_model_type(config)
    if family not in CONFIG_MAPPING or CONFIG_MAPPING[family] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"model type '{family}' is no causal language model that transformers knows.{_supported()}")
    obstacle = config_obstacle(config)
    if obstacle is not None:
        raise _unsupported(config, obstacle)
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    # A new config: building a model on one changes it.
    config = AutoConfig.for_model(family, **fields)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def _kinds_of_layers(model: PreTrainedModel) -> list[nn.Module]:
    """One decoder layer of each kind: of equal classes, with children of equal names."""
    kinds = {
        (type(layer), type(attention_of(layer)), tuple(name for name, _ in layer.named_children())): layer
        for layer in reversed(decoder_layers(model))
    }
    return list(kinds.values())


def _watched_anatomy(model: PreTrainedModel, layer: Any) -> Anatomy | str:
    """The anatomy as one forward shows it, or why it cannot be what a plan needs."""
    try:
        calls = _watch(model, layer)
    # as `inspecting`: the family's own code runs
    except Exception as error:
        return f"a forward of its decoder cannot be watched ({_in_short(error)})"
    attention = next(call for call in calls if call.name == "self_attn")
    if PUBLICATIONS not in attention.keywords:
        return "its decoder does not pass keyword arguments on to the attention"
    norms = [call for call in calls if "norm" in call.name]
    before = [call.name for call in norms if call.output is attention.input]
    after = [call for call in norms[len(before) :] if call.input is not calls[0].input]
    if not after:
        return "its layers have no norm between attention and feed-forward (they run in parallel)"
    own = [after[0].name] if after[0].input is attention.output else []
    return Anatomy((*before, *own), after[0].name, fused=hasattr(attention_of(layer), FUSED))


@dataclass(frozen=True)
class _Call:
    """One call of a child module: its first input, its first output, and what else it was told by keyword."""

    name: str
    input: Any
    output: Any
    keywords: frozenset[str]


class _SeenEnough(Exception):
    """Ends a watched forward before the feed-forward, which not every family can run without weights."""


def _watch(model: PreTrainedModel, layer: nn.Module) -> list[_Call]:
    """The calls of a layer's children, in order, up to what follows the norm after the attention."""
    calls: list[_Call] = []
    handles = []
    for name, child in layer.named_children():

        def record(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            calls.append(_Call(name, hidden, output[0] if isinstance(output, tuple) else output, frozenset(kwargs)))

        def stop(_: nn.Module, args: Any) -> None:
            names = [call.name for call in calls]
            if "self_attn" in names and any("norm" in name for name in names[names.index("self_attn") :]):
                raise _SeenEnough

        handles += [child.register_forward_pre_hook(stop), child.register_forward_hook(record, with_kwargs=True)]
    args, kwargs = _call_of_first_layer(model)
    try:
        layer(*args, **kwargs)
    except _SeenEnough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _call_of_first_layer(model: PreTrainedModel) -> tuple[Any, Any]:
    """Positional and keyword arguments that the decoder gives its first layer."""
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
    inputs = {"input_ids": ids, "use_cache": False, PUBLICATIONS: None}
    handle = decoder_layers(model)[0].register_forward_pre_hook(record, with_kwargs=True)
    try:
        # With a mask and the eager kernel transformers looks at no values, of which meta tensors have none; some
        # families look at the mask themselves (Granite 4), and not where there is none.
        model.get_decoder()(attention_mask=torch.ones_like(ids), **inputs)
    except _SeenEnough:
        pass
    except RuntimeError:
        with suppress(_SeenEnough):
            model.get_decoder()(**inputs)
    finally:
        handle.remove()
    return seen[0]
