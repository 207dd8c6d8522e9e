"""What can be made of a model, asked of the code that refuses the rest, on a small model of random weights like it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from uniattn_pl.architectures import available, get_architecture
from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import auto_model, decoders_alone, has_encoder, reading
from uniattn_pl.families.inspection import stock_model_type
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError
from uniattn_pl.plan.roles import ROLES

YES, IN_PART, NO = "yes", "in part", "no"
# Sizes that no forward looks at: whatever else a config says (layers, their kinds, clips, scales, rotations) is kept.
SMALL: dict[str, int] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "head_dim": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_ssm": 128,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_BESIDE_ENCODERS: dict[str, int] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
DERIVED = ("model_type", "layer_plan", "qk_head_dim")  # of other fields
WINDOW = 4
TRIES = 4  # of single layers, where all of them together are refused
CROSS_MAPS = "reuse, both maps"  # of self-attention and of cross-attention, beside an encoder
GIVEN = "given"  # a plan of the user's own
ASKED = ("reuse", "share_kv", "drop", "skip", "heads", "window")
"""The roles that an architecture gives to layers."""
EXAMPLES: dict[str, dict[str, Any]] = {"llmdrop": {"layers": [1]}, "shortgpt": {"layers": [1]}}
"""Options of architectures whose defaults leave something to say."""


@dataclass(frozen=True)
class Possibility:
    """Whether something can be had (`yes`, `in part`: in some layers, `no`), and why not the rest of it."""

    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Possibilities:
    """What can be made of one model.

    Attributes:
        model_type: its stock type.
        ran: whether a small model like it was converted and run; else only what the config says was looked at.
        roles: by role, in the layers that have the sizes for it.
        architectures: by name, each with its default options.
    """

    model_type: str
    ran: bool
    roles: dict[str, Possibility]
    architectures: dict[str, Possibility]


def possibilities(config: PreTrainedConfig, *, architectures: bool = True) -> Possibilities:
    """Ask for every role and every architecture on a model of this config, stock or converted; reads no weights.

    Raises:
        UserError: no plan is possible at all, and why.
    """
    shape, small = shape_of(config), small_model(config.get_text_config())
    roles = {name: _role(_steps(name, shape), name, shape, small) for name in ASKED}
    if shape.encoder is not None:
        both = (step.reuse_cross_maps() for step in _steps("reuse", shape))
        roles[CROSS_MAPS] = _role(filter(lambda step: _fits(step, shape), both), "reuse", shape, small)
    names = [name for name in available() if name != GIVEN] if architectures else []
    found = {name: _architecture(name, shape, small) for name in names}
    return Possibilities(stock_model_type(config), small is not None, roles, found)


def small_model(config: PreTrainedConfig) -> PreTrainedModel | None:
    """A model of random weights with the options of `config` and few features; None where no such sizes fit."""
    given = {name: value for name, value in config.to_dict().items() if name not in DERIVED}
    if hasattr(config, "decoder"):  # sizes within sizes, of an encoder and a decoder (T5-Gemma)
        return None
    of_kind = SMALL | SMALL_BESIDE_ENCODERS if has_encoder(config) else SMALL
    sizes = {name: value for name, value in of_kind.items() if given.get(name) is not None}
    grouped = given.get("num_key_value_heads") not in (None, given.get("num_attention_heads"))
    if given.get("num_key_value_heads") is not None:
        sizes["num_key_value_heads"] = min(2, given["num_key_value_heads"]) if grouped else 4
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            stock = AutoConfig.for_model(stock_model_type(config), **given | sizes)
            model: PreTrainedModel = auto_model(stock).from_config(stock, dtype=torch.float32).eval()
        model(**reading(model, torch.arange(2)[None]), use_cache=False)
        shape_of(stock)
    except Exception:  # sizes of 189 families, of which these may not fit
        return None
    return model


def _role(found: Iterable[LayerPlan], role: str, shape: ModelShape, small: PreTrainedModel | None) -> Possibility:
    """Every other layer in this role, of the plans that give it to one each, or, where that is refused, the first layer
    that can have it."""
    steps = list(found)
    if not steps:
        return Possibility(NO, _first_problem(role, shape))
    plan = LayerPlan.stock(shape)
    for step in steps:
        plan = plan.with_rows({row.index: row for row in step.rows if row.role == role})
    whole = _converted(plan, small)
    if whole.verdict == YES:
        return whole
    some = any(_converted(step, small).verdict == YES for step in steps[:TRIES])
    return Possibility(IN_PART if some else NO, whole.reason)


def _steps(role: str, shape: ModelShape) -> Iterator[LayerPlan]:
    """Plans with one layer of a role each, no two of them neighbours, that go together and have the sizes for it."""
    taken: set[int] = set()
    attending = shape.attention_layers
    for number, index in enumerate(attending[1:] or attending):
        if index in taken or attending[number] in taken:
            continue
        sources = [source for source in reversed(attending) if source < index and source not in taken]
        for source in sources if ROLES[role].reads else [None]:
            plan = _one(role, index, source, shape)
            if _fits(plan, shape):
                taken.add(index)
                yield plan
                break


def _one(role: str, index: int, source: int | None, shape: ModelShape) -> LayerPlan:
    sizes: dict[str, Any] = {"kv_heads": 1, "window": WINDOW}
    wanted = {name: sizes[name] for name in ROLES[role].sizes}
    return LayerPlan.stock(shape).assign([index], role, source, **wanted)


def _fits(plan: LayerPlan, shape: ModelShape) -> bool:
    try:
        plan.check(shape)
    except PlanError:
        return False
    return True


def _first_problem(role: str, shape: ModelShape) -> str:
    if ROLES[role].reads and len(shape.attention_layers) == 1:
        return f"only layer {shape.attention_layers[0]} attends."
    below, index = (*shape.attention_layers, shape.attention_layers[0])[:2]
    try:
        _one(role, index, below if ROLES[role].reads else None, shape).check(shape)
    except PlanError as error:
        return error.problems[-1]
    return "no layer sees as far as another one above it."


def _architecture(name: str, shape: ModelShape, small: PreTrainedModel | None) -> Possibility:
    """An architecture with its default options."""
    kind = get_architecture(name)
    try:
        architecture = kind(**EXAMPLES.get(name, {}))
        if architecture.measured:
            architecture.check(shape)
            if shape.encoder is not None:
                return Possibility(NO, decoders_alone("what measures layers", shape.model_type))
            return Possibility(YES, "measures which layers it takes")
        return _converted(architecture.compile(shape), small)
    except UserError as error:
        return Possibility(NO, "; ".join(error.problems))


def _converted(plan: LayerPlan, small: PreTrainedModel | None) -> Possibility:
    if small is None:
        return Possibility(YES)
    try:
        converted_copy(small, plan)
    except UserError as error:
        return Possibility(NO, "; ".join(error.problems))
    return Possibility(YES)
