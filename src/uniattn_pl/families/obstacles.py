"""What keeps a family from being converted, and what its attention reads besides the parts that plans know."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from uniattn_pl.families.inspection import (
    FAMILIES,
    FUSED,
    KNOWN_PARTS,
    PROJECTIONS,
    attention_of,
    family_module,
    stock_class,
)

CONFIG_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
ATTENTION_ARGUMENTS = ("hidden_states", "position_embeddings", "attention_mask", "past_key_values", "kwargs")
HELPERS = ("eager_attention_forward", "apply_rotary_pos_emb")
# What a forward reads that operated attentions read too, that decides how the source's map or keys are made (which
# readers take ready-made, and the probe compares), or that is refused elsewhere (dropout).
KNOWN_READS = KNOWN_PARTS | {
    *("config", "config._attn_implementation", "layer_idx", "training", "attention_dropout", "residual_dropout"),
    *("head_dim", "v_head_dim", "num_heads", "num_key_value_heads", "num_key_value_groups"),
    *("config.num_attention_heads", "config.num_key_value_heads", "config.rope_parameters"),
    *("scaling", "sliding_window", "attn_logit_softcapping"),
    *("is_sliding", "is_local_attention", "use_rope", "use_qk_norm"),
}


def config_obstacle(config: PreTrainedConfig) -> str | None:
    """What a config says by itself: a wrapper around a text model, or an encoder beside the decoder."""
    text = config.get_text_config()
    if text is not config:
        supported = " (supported)" if text.model_type in FAMILIES else ""
        return (
            f"it wraps a text model of type '{text.model_type}'{supported}; save that part as a folder of its own and "
            "convert it"
        )
    return "it has an encoder beside its decoder" if config.is_encoder_decoder else None


def obstacles(model: PreTrainedModel) -> list[str]:
    """The first thing a family lacks of what source layers, reuse layers and caches rely on; several of one kind."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return ["its decoder keeps no list named 'layers'"]
    without = [index for index, layer in enumerate(layers) if getattr(layer, "self_attn", None) is None]
    if len(without) == len(layers):
        return ["its layers have no 'self_attn'"]
    if without:
        return [f"layer {', '.join(map(str, without))} has no 'self_attn'"]
    problems = _of_all([attention_of(layer) for layer in layers], _attention_problems)
    if not model._supports_attention_backend:
        problems.append("it does not go through transformers' attention interface")
    missing = [name for name in CONFIG_KEYS if not hasattr(model.config, name)]
    if missing and not problems:
        problems.append(f"its config has no {', '.join(missing)}")
    return problems


def _of_all(attentions: Sequence[Any], problems_of: Callable[[Any], list[str]]) -> list[str]:
    """The problems of every layer's attention; which layers have one is said where not all have it."""
    where: dict[str, list[int]] = {}
    for index, attention in enumerate(attentions):
        for problem in problems_of(attention):
            where.setdefault(problem, []).append(index)
    return [
        problem if len(indices) == len(attentions) else f"{problem} (layer {', '.join(map(str, indices))})"
        for problem, indices in where.items()
    ]


def _attention_problems(attention: nn.Module) -> list[str]:
    parts = {name for name, _ in (*attention.named_children(), *attention.named_parameters(recurse=False))}
    projections = (FUSED, "o_proj") if FUSED in parts else PROJECTIONS
    accepted = inspect.signature(type(attention).forward).parameters
    module = family_module(attention)
    checks = {
        "its attention has no {}": [name for name in projections if name not in parts],
        "its attention has parts that a plan would lose: {}": sorted(parts - KNOWN_PARTS),
        "its attention takes no {}": [name for name in ATTENTION_ARGUMENTS if name not in accepted],
        "its modeling file has no {}": [name for name in HELPERS if not hasattr(module, name)],
    }
    return [problem.format(", ".join(names)) for problem, names in checks.items() if names]


def active_extras(attention: Any) -> dict[str, Any]:
    """What else an attention's forward reads, from itself or its config, that is set: a clip, a scale, a gate -> value.

    None, False, 0 and 1 (of a scale) are taken for "not set". Empty, too, where the source cannot be read.
    """
    extras = {}
    for name in _reads(stock_class(attention)) - KNOWN_READS:
        owner = attention.config if name.startswith("config.") else attention
        value = getattr(owner, name.removeprefix("config."), None)
        unset = value is None or value is False or (type(value) in (int, float) and value in (0, 1))
        if not unset:
            extras[name.removeprefix("config.")] = value
    return extras


@cache
def _reads(attention_class: type) -> frozenset[str]:
    """`self.NAME` and `self.config.NAME` (as `config.NAME`) in the forward of a class."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(attention_class.forward)))  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError):  # no source, a built-in, source that is no statement of its own
        return frozenset()
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = {node.attr for node in attributes if _is_self(node.value)}
    of_config = {
        f"config.{node.attr}"
        for node in attributes
        if isinstance(node.value, ast.Attribute) and node.value.attr == "config" and _is_self(node.value.value)
    }
    return frozenset(own | of_config)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
