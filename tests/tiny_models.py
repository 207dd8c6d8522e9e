"""One tiny model of random weights per family, and one plan per way of operating on its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from uniattn_pl.architectures import CLA, LLMDrop, SharedAttention, UniAttn
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan, ModelShape

LAYERS, VOCABULARY, WINDOW = 6, 64, 6
LOCAL, CHUNKED, GLOBAL = "sliding_attention", "chunked_attention", "full_attention"
MODES = ("materialise", "replay")
UNMODIFIED = LayerPlan.unmodified(LAYERS)
SATURATES = bool(torch.tensor([500.0]).to(torch.float8_e4m3fn).float().isfinite())
"""Whether a float beyond float8's largest becomes that one; with torch 2.10 it is NaN, and so are fp8 caches."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXTURE = {"moe_intermediate_size": 20, "num_experts_per_tok": 2}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
LATENT_MIXTURE = MIXTURE | ONE_GROUP | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
# Of hybrids six layers attend, as in the others; 0 and 4 do not.
RECURRENT = "linear_attention"
HYBRID = {
    "num_hidden_layers": LAYERS + 2,
    "layer_types": [RECURRENT, GLOBAL, GLOBAL, GLOBAL, RECURRENT, GLOBAL, GLOBAL, GLOBAL],
}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
MULTIPLIERS = {"residual_multiplier": 0.22, "attention_multiplier": 0.3, "logits_scaling": 2.0}
# Layers 1 and 3 of both Gemmas are global, so that local layers can read from global ones and from local ones.
SPECIAL: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {
        "sliding_window": WINDOW,
        "layer_types": [LOCAL, GLOBAL] * 3,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 10.0,
        "tie_word_embeddings": False,
    },
    "gemma3_text": {
        "sliding_window": WINDOW,
        "layer_types": [LOCAL, GLOBAL, LOCAL, GLOBAL, LOCAL, LOCAL],
        "query_pre_attn_scalar": 8,
        "tie_word_embeddings": False,
        "rope_parameters": {
            LOCAL: {"rope_type": "default", "rope_theta": 100.0},
            GLOBAL: {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "cwm": {"sliding_window": WINDOW, "layer_types": [LOCAL, GLOBAL] * 3},
    "ernie4_5_moe": MIXTURE | {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    # Global layers rotate nothing: layers 1 to 4 are local.
    "exaone4": {"sliding_window": WINDOW, "layer_types": [GLOBAL, LOCAL, LOCAL, LOCAL, LOCAL, GLOBAL]},
    "glm4_moe": MIXTURE | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, **ONE_GROUP},
    "granite": MULTIPLIERS,
    "granitemoe": MULTIPLIERS | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": MULTIPLIERS
    | {"layer_types": ["attention"] * LAYERS, "num_local_experts": 4, "num_experts_per_tok": 2, "mamba_n_heads": 4},
    "helium": {"mlp_bias": False},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "olmo3": {"sliding_window": WINDOW, "layer_types": [LOCAL, GLOBAL] * 3},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": MIXTURE | {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "mlp_only_layers": [2]},
    "smollm3": {"no_rope_layer_interval": 3},
    "starcoder2": {"sliding_window": WINDOW, "use_bias": True},
    "cohere2": {"sliding_window": WINDOW, "layer_types": [GLOBAL, LOCAL, LOCAL, LOCAL, LOCAL, GLOBAL]},
    "gpt_oss": {
        "sliding_window": WINDOW,
        "layer_types": [LOCAL, GLOBAL] * 3,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "deepseek_v2": LATENT | LATENT_MIXTURE,
    "deepseek_v3": LATENT | LATENT_MIXTURE,
    "glm4_moe_lite": LATENT | LATENT_MIXTURE,
    "kimi_linear": HYBRID
    | LATENT
    | MIXTURE
    | {
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_expert_group": 1,
        "linear_num_heads": 4,
        "linear_head_dim": 8,
    },
    "qwen3_next": HYBRID
    | DELTA
    | MIXTURE
    | {"num_experts": 4, "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2},
    "qwen3_5_text": HYBRID | DELTA,
    "olmo_hybrid": HYBRID | DELTA,
    # Full layers rotate nothing, and scale their queries by how many tokens there were.
    "llama4_text": {
        "attention_chunk_size": WINDOW,
        "layer_types": [GLOBAL, CHUNKED, CHUNKED, CHUNKED, CHUNKED, GLOBAL],
        "no_rope_layers": [0, 1, 1, 1, 1, 0],
        "floor_scale": 4,
        "attn_scale": 0.5,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 40,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "lfm2": HYBRID | {"layer_types": ["conv", GLOBAL, GLOBAL, GLOBAL, "conv", GLOBAL, GLOBAL, GLOBAL]},
    "nemotron_h": {
        "num_hidden_layers": LAYERS + 3,
        "layers_block_type": [RECURRENT, GLOBAL, GLOBAL, GLOBAL, "moe", "mlp", GLOBAL, GLOBAL, GLOBAL],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "chunk_size": 16,
        "n_groups": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        **ONE_GROUP,
    },
    "falcon_h1": {"mamba_d_ssm": 64, "attention_in_multiplier": 0.5, "attention_out_multiplier": 0.7, **MAMBA},
    "bamba": {"num_hidden_layers": LAYERS + 2, "attn_layer_indices": [1, 2, 3, 5, 6, 7], **MAMBA},
    "jamba": {"num_hidden_layers": 2 * LAYERS, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4},
    # Values of half the size of keys. (Its windowed layers have sinks, which no reader could have.)
    "mimo_v2_flash": {
        "v_head_dim": 4,
        "attention_value_scale": None,
        "layer_types": [GLOBAL] * LAYERS,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
    },
}
DISTINCT = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2")
"""Families that differ in norms, windows, biases, projections: what tests/families/ does not try is tried on these."""

EAGER_ONLY = frozenset({"gemma2", "gpt_oss", "mimo_v2_flash"})

ARCHITECTURES: dict[str, Callable[[ModelShape], LayerPlan]] = {
    # Layers 2 and 3 read from layer 1: on Gemma local from global and global from global.
    "uniattn": UniAttn(superblock_size=3, num_superblocks=1, first_layer=1).compile,
    # On Gemma local from local: the values, too, are kept for a window only.
    "uniattn_windowed": lambda _: UNMODIFIED.reuse([2, 4], 0, compensated=True),
    "cla": CLA(superblock_size=2, num_superblocks=2, first_layer=1, compensation=True).compile,
    "llmdrop": LLMDrop(layers=[0, 4]).compile,
    "shared_attention": SharedAttention(first_layer=1).compile,
    "uniattn_llmdrop": UniAttn(
        superblock_size=4, num_superblocks=1, first_layer=1, dropped_layers=[2], dropped_compensation=True
    ).compile,
    # Layer 1 gives both its map and its keys and values; layer 2 shares those of a local layer.
    "mixed": lambda _: (
        UNMODIFIED.share_kv([2], 0, compensated=False)
        .reuse([3], 1, compensated=True)
        .share_kv([4], 1, compensated=True)
        .drop([5], compensated=True)
    ),
}


def cases(families: Sequence[str] = DISTINCT, *, modes: bool) -> pytest.MarkDecorator:
    """Families x architectures, and x modes where an attention map is shared (elsewhere there is nothing to choose)."""
    names = ("family", "architecture", "mode") if modes else ("family", "architecture")
    rows = []
    for family in families:
        for architecture in ARCHITECTURES:
            reads_map = bool(plan_of(family, architecture).reusing)
            of_case = MODES if reads_map else ("auto",)
            rows += [(family, architecture, mode)[: len(names)] for mode in (of_case if modes else ("auto",))]
    return pytest.mark.parametrize(names, rows)


@lru_cache
def shape(family: str) -> ModelShape:
    return shape_of(_built(family).config)


@lru_cache
def plan_of(family: str, architecture: str) -> LayerPlan:
    return ARCHITECTURES[architecture](shape(family))


@lru_cache
def _built(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **SIZES | SPECIAL.get(family, {}))
    torch.manual_seed(0)
    backend = "eager" if family in EAGER_ONLY else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=backend).eval()
    for parameter in model.parameters():
        # Norms and biases that do something.
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    model.generation_config.eos_token_id = None
    return model


def random_model(family: str, dtype: torch.dtype = torch.float32, **special: Any) -> PreTrainedModel:
    """A tiny model of any family, with options of its own."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | special)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model


def stock(family: str) -> PreTrainedModel:
    """The family's tiny model, for the caller alone."""
    return copy.deepcopy(_built(family))


@lru_cache
def _converted(family: str, architecture: str) -> PreTrainedModel:
    return with_random_compensations(apply_plan(stock(family), plan_of(family, architecture)))


def converted(family: str, architecture: str, mode: str = "auto") -> PreTrainedModel:
    """The tiny model under an architecture, with compensations that do something, for the caller alone."""
    model = copy.deepcopy(_converted(family, architecture))
    model.config.reuse_mode = mode
    return model


def with_random_compensations(model: PreTrainedModel, deviation: float = 0.1) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "w_c" in name:
            parameter.data.normal_(0, deviation, generator=generator)
    return model


def tokens(batch: int, length: int, *, seed: int = 1) -> torch.Tensor:
    """Random token ids [batch, length], none of them special."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))
