"""Decoder families: the tested ones as a table, and what differs between any of them found by inspection."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from uniattn_pl.errors import UserError

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
CONFIG_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
ATTENTION_ARGUMENTS = ("hidden_states", "position_embeddings", "attention_mask", "past_key_values", "kwargs")
HELPERS = ("eager_attention_forward", "apply_rotary_pos_emb")


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


def anatomy_of(config: PreTrainedConfig) -> Anatomy:
    """Find out where a family's layers keep what plans touch, on a weightless model.

    Raises:
        UserError: the family does not follow transformers' attention interface; says what is missing.
    """
    return anatomy_of_model(weightless(config))


def weightless(config: PreTrainedConfig) -> PreTrainedModel:
    """The stock model of a config, stock or converted, on the meta device."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    family = stock_model_type(config)
    if family not in CONFIG_MAPPING or CONFIG_MAPPING[family] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"model type '{family}' is no causal language model that transformers knows.{_supported()}")
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    # A new config: building a model on one changes it.
    config = AutoConfig.for_model(family, **fields)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except TypeError as error:
        raise UserError(f"transformers cannot build a model of type '{family}' from this config ({error}).") from error


def _supported() -> str:
    return f" Supported: {', '.join(sorted(FAMILIES))}, and others whose attention follows the same interface."


def anatomy_of_model(model: PreTrainedModel) -> Anatomy:
    """`anatomy_of` for a weightless model."""
    problems = _interface_problems(model)
    if not problems:
        anatomy = _watched_anatomy(model)
        if isinstance(anatomy, Anatomy):
            return anatomy
        problems = [anatomy]
    family = stock_model_type(model.config)
    raise UserError(f"model type '{family}' is not supported: {'; '.join(problems)}.{_supported()}")


def _watched_anatomy(model: PreTrainedModel) -> Anatomy | str:
    """The anatomy as one forward shows it, or why it cannot be what a plan needs."""
    layer = decoder_layers(model)[0]
    try:
        calls = _watch(model, layer)
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        return f"a forward of its decoder cannot be watched ({type(error).__name__}: {error})"
    attention = next(call for call in calls if call.name == "self_attn")
    if PUBLICATIONS not in attention.keywords:
        return "its decoder does not pass keyword arguments on to the attention"
    norms = [call for call in calls if "norm" in call.name]
    before = [call.name for call in norms if call.output is attention.input]
    after = [call for call in norms[len(before) :] if call.input is not calls[0].input]
    if not after:
        return "its layers have no norm between attention and feed-forward (they run in parallel)"
    own = [after[0].name] if after[0].input is attention.output else []
    return Anatomy((*before, *own), after[0].name, fused=hasattr(layer.self_attn, FUSED))


def _interface_problems(model: PreTrainedModel) -> list[str]:
    """What a family lacks of the interface that source layers, reuse layers and caches rely on."""
    missing = [name for name in CONFIG_KEYS if not hasattr(model.config, name)]
    if missing:
        return [f"its config has no {', '.join(missing)}"]
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return ["its decoder keeps no list named 'layers'"]
    without = [index for index, layer in enumerate(layers) if not hasattr(layer, "self_attn")]
    if without:
        return [f"layer {', '.join(map(str, without))} has no 'self_attn'"]
    return _attention_problems(layers.get_submodule("0.self_attn"), model)


def _attention_problems(attention: nn.Module, model: PreTrainedModel) -> list[str]:
    parts = {name for name, _ in (*attention.named_children(), *attention.named_parameters(recurse=False))}
    projections = (FUSED, "o_proj") if FUSED in parts else PROJECTIONS
    accepted = inspect.signature(type(attention).forward).parameters
    module = family_module(attention)
    checks = {
        "its attention has no {}": [name for name in projections if name not in parts],
        "its attention has parts that a plan would lose: {}": sorted(parts - KNOWN_PARTS),
        "its attention takes no {}": [name for name in ATTENTION_ARGUMENTS if name not in accepted],
        "its modeling file has no {}": [name for name in HELPERS if not hasattr(module, name)],
        "it does not go through transformers' attention interface{}": [""] * (not model._supports_attention_backend),
    }
    return [problem.format(", ".join(names)) for problem, names in checks.items() if names]


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
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    try:
        # With a mask and the eager kernel transformers looks at no values, of which meta tensors have none.
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False, PUBLICATIONS: None}
        model.get_decoder()(**inputs)
    except _SeenEnough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return calls
