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

from uniattn_pl.families.attention_parts import LATENT_IN, LATENT_NORM, LATENT_OUT, NAMES, row_spans
from uniattn_pl.families.encoder_decoder import decoder_config, has_encoder, sees_images
from uniattn_pl.families.inspection import (
    FAMILIES,
    FUSED,
    KNOWN_PARTS,
    LAYER_LISTS,
    POSITION_BIAS,
    PROJECTIONS,
    attention_of,
    decoder_of,
    family_module,
    output_name,
    stock_class,
)
from uniattn_pl.plan.roles import KEY, OUTPUT, QUERY, VALUE

CONFIG_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
ATTENTION_ARGUMENTS = ("hidden_states", "position_embeddings", "attention_mask", "past_key_values", "kwargs")
HELPERS = (EAGER_FUNCTION := "eager_attention_forward", ROTATION := "apply_rotary_pos_emb")
# What chooses the tokens that a layer sees by a cache or a search of its own, of which no plan knows.
SELECTING = frozenset({"indexer", "compressor"})
# A scale of queries by their positions, where it is set among the rotation's own (Ministral-3).
QUERY_SCALE = "llama_4_scaling_beta"
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
    """What a config says by itself: a wrapper around a text model."""
    if has_encoder(config):
        return None
    text = config.get_text_config()
    if text is not config and not sees_images(config):
        supported = " (supported)" if text.model_type in FAMILIES else ""
        return (
            f"it wraps a text model of type '{text.model_type}'{supported}; save that part as a folder of its own and "
            "convert it"
        )
    return None


def obstacles(model: PreTrainedModel) -> list[str]:
    """The first thing a family lacks of what source layers, reuse layers and caches rely on; several of one kind."""
    decoder = decoder_of(model)
    layers = next((found for name in LAYER_LISTS if (found := getattr(decoder, name, None)) is not None), None)
    if not isinstance(layers, nn.ModuleList):
        return [f"its decoder keeps no list named {' or '.join(map(repr, LAYER_LISTS))}"]
    attentions = [attention for layer in layers if (attention := attention_of(layer)) is not None]
    if not attentions:
        return ["none of its layers attends through transformers' attention functions"]
    problems = _of_all(attentions, _refusals)
    if sum(hasattr(attention, POSITION_BIAS) for attention in attentions) > 1:
        problems.append("each of its layers adds position biases of its own, by the length of its own cache")
    if sees_images(model.config) and not all(getattr(attention, "is_causal", True) for attention in attentions):
        problems.append("its prompts see later tokens, too (PaliGemma's prefixes)")
    to_images = [str(index) for index, layer in enumerate(layers) if hasattr(layer, "cross_attn")]
    if to_images and not has_encoder(model.config):
        problems.append(f"layers {', '.join(to_images)} attend to images, of which no plan knows")
    missing = [name for name in CONFIG_KEYS if not hasattr(decoder_config(model), name)]
    if missing and not problems:
        problems.append(f"its config has no {', '.join(missing)}")
    return problems


def _refusals(attention: Any) -> list[str]:
    """Why no reader of this attention could be made at all."""
    parts = {name for name, _ in (*attention.named_children(), *attention.named_parameters(recurse=False))}
    if FUSED in parts:
        missing = [] if output_name(attention) else [OUTPUT]
    else:
        latent = {LATENT_IN, LATENT_NORM, LATENT_OUT} <= parts
        needed = (QUERY, OUTPUT) if latent else (QUERY, KEY, VALUE, OUTPUT)
        missing = [projection for projection in needed if not parts & set(NAMES[projection])]
    checks = {
        "its attention has no projection of {} that is known": missing,
        "its attention chooses the tokens it sees by parts that a plan would lose: {}": sorted(parts & SELECTING),
        "its modeling file has no {}": [
            name for name in (EAGER_FUNCTION,) if not hasattr(family_module(attention), name)
        ],
    }
    return [problem.format(", ".join(names)) for problem, names in checks.items() if names]


def is_plain(attention: Any) -> bool:
    """Whether a stock attention does no more than project, norm and rotate, so that readers can do without its code."""
    if _attention_problems(attention) or active_extras(attention) or _rotates_on_a_condition(stock_class(attention)):
        return False
    return row_spans(attention).keys() <= {FUSED}


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
    accepted = inspect.signature(stock_class(attention).forward).parameters  # type: ignore[attr-defined]
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
    extras: dict[str, Any] = {}
    scale = (getattr(attention.config, "rope_parameters", None) or {}).get(QUERY_SCALE)
    if scale:
        extras[QUERY_SCALE] = scale
    for name in _reads(stock_class(attention)) - KNOWN_READS:
        owner = attention.config if name.startswith("config.") else attention
        value = getattr(owner, name.removeprefix("config."), None)
        unset = value is None or value is False or (type(value) in (int, float) and value in (0, 1))
        if not unset:
            extras[name.removeprefix("config.")] = value
    return extras


@cache
def _rotates_on_a_condition(attention_class: type) -> bool:
    """Whether some layers of a class turn their queries and keys and some do not (Cohere-2, EXAONE-4, SmolLM3): by more
    than whether they are given a rotation."""
    return any(
        isinstance(node, ast.If | ast.IfExp)
        and _names(node.test) - {"position_embeddings"}
        and ROTATION in _names(node)
        for node in ast.walk(_forward_tree(attention_class))
    )


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _forward_tree(attention_class: type) -> ast.AST:
    """The forward of a class as a syntax tree; an empty one where its source cannot be read."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(attention_class.forward)))  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError):  # no source, a built-in, source that is no statement of its own
        return ast.Module([], [])


@cache
def _reads(attention_class: type) -> frozenset[str]:
    """`self.NAME` and `self.config.NAME` (as `config.NAME`) in the forward of a class."""
    tree = _forward_tree(attention_class)
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
