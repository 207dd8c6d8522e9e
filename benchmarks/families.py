"""Every causal language model type of transformers, tiny and random: what converts, what is refused, and why.

    python -m benchmarks.families [TYPE ...]
    python -m benchmarks.families --write    # the numbers of docs/families.md; then python -m benchmarks.results

A converted model is compared with the stock one, in which only the function that attends is exchanged
(exchanged_kernel.py). Float32 and eager attention, 160 tokens in one forward, and again in steps with a cache. Exit
code 1 when a conversion is wrong or fails with anything but a refusal. About five minutes on one core for all of them.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.exchanged_kernel import exchanged

from uniattn_pl.reporting.results_file import one_row_a_line

LENGTH, STEPS = 160, (100, 56, 1, 1, 1, 1)
TOLERANCE = 1e-4  # of the logits, relative to the largest
EXACT, REFUSED, WRONG, CRASH, UNKNOWN = "exact", "refused", "WRONG", "CRASH", "no reference"
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "index_topk": 8,
    "index_topk_blocks": 2,
    "index_block_size": 16,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "embed_dim": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_heads": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# What a default leaves unused, or a size that has to fit another one.
SPECIAL: dict[str, dict[str, Any]] = {
    "olmo": {"clip_qkv": 0.9},
    "olmoe": {"clip_qkv": 0.9},
    "smollm3": {"no_rope_layer_interval": 3},
    "granite": {"residual_multiplier": 0.22},
    "granitemoe": {"residual_multiplier": 0.22},
    "granitemoeshared": {"residual_multiplier": 0.22},
    "granitemoehybrid": {"residual_multiplier": 0.22, "layer_types": ["attention"] * 6, "mamba_n_heads": 4},
    "mimo_v2_flash": {"attention_value_scale": 0.7},
    "minimax_m3_vl_text": {"layer_types": ["full_attention"] + ["minimax_m3_sparse"] * 5},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "original_max_position_embeddings": 32,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "llama4_text": {"attention_chunk_size": 48, "floor_scale": 32, "attn_scale": 0.5, "intermediate_size_mlp": 48},
    "dots1": {"n_shared_experts": 1},
    "phi4_multimodal": {"audio_config": {"num_blocks": 1}, "vision_config": {"num_hidden_layers": 1}},
}
LINEAR = ["linear_attention", "full_attention"] * 3
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
for _hybrid in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"):
    SPECIAL[_hybrid] = {"layer_types": LINEAR, **DELTA}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
SPECIAL |= {
    "bamba": {"attn_layer_indices": [1, 3, 5], **MAMBA},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "falcon_h1": {"mamba_d_ssm": 64, **MAMBA},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "full_attention", "moe", "full_attention", "mlp", "full_attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "chunk_size": 16,
        "n_groups": 1,
    },
    **{family: {"layer_types": ["conv", "full_attention"] * 3} for family in ("lfm2", "lfm2_moe", "lfm3")},
    "minimax": {"layer_types": LINEAR},
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "head_dim": 8,
}
for _latent in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu", "axk1"):
    SPECIAL[_latent] = LATENT
for _both in ("kimi_linear", "bailing_hybrid"):
    SPECIAL[_both] = {"layer_types": LINEAR, **LATENT, "num_experts_per_token": 2, "num_expert_group": 1}
    SPECIAL[_both] |= {"linear_num_heads": 4, "linear_head_dim": 8}


SOURCE = 24
_GEMMA_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range", "sliding_window"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
BESIDE_ENCODERS: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_heads": 4,
    "num_layers": 6,
    "num_decoder_layers": 6,
    "encoder_layers": 3,
    "decoder_layers": 6,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_encoder_position_embeddings": 256,
    "max_decoder_position_embeddings": 256,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "attention_dropout": 0.0,
    "speech_encoder_layers": 1,
    "decoder_start_token_id": 1,
    "num_encoder_layers": 3,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "t2u_encoder_layers": 1,
    "t2u_decoder_layers": 1,
}
"""Sizes of models with an encoder, in whose decoder the layers are that a plan is about."""
SPECIAL["t5gemma"] = {
    "vocab_size": SIZES["vocab_size"],
    **{part: {name: SIZES[name] for name in _GEMMA_SIZES} for part in ("encoder", "decoder")},
}


@dataclass(frozen=True)
class Outcome:
    """What became of one plan on one family, and the words for it."""

    verdict: str
    reason: str = ""


ROLES = ("unmodified", "reuse", "share_kv", "drop")


def plan_of(role: str, shape: Any) -> Any:
    """A plan of one role; `unmodified` attends and caches as converted models do, and computes the same."""
    from uniattn_pl.plan import LayerPlan

    plan, layers = LayerPlan.stock(shape), shape.attention_layers
    windows = [layer.window for layer in shape.layers]
    if role == "drop":
        return plan.drop({layers[1 % len(layers)], layers[-2 % len(layers)]}, compensated=False)
    if role != "unmodified":
        # Readers of the second layer and, as far as they see as much, of the one in the middle.
        half = len(layers) // 2
        for source, readers in ((layers[1:2], layers[2:3]), (layers[half : half + 1], layers[half + 1 :])):
            alike = [reader for reader in readers if windows[reader] == windows[source[0]]]
            plan = plan.assign(alike, role, source[0]) if alike else plan
    return plan


def tiny_config(model_type: str) -> Any:
    """A small config of a type; of a wrapper around a text model, or where sizes do not fit, the type's default."""
    from transformers import AutoConfig

    from uniattn_pl.families.encoder_decoder import has_encoder, sees_images

    plain = AutoConfig.for_model(model_type)
    if sees_images(plain):
        return _tiny_wrapper(plain)
    if plain.sub_configs and model_type not in SPECIAL:
        return plain
    fields = {**plain.to_dict(), **{plain.attribute_map.get(name, name): None for name in plain.attribute_map}}
    sizes = SIZES | BESIDE_ENCODERS if has_encoder(plain) else SIZES
    known = {name: size for name, size in sizes.items() if name in fields}
    try:
        return AutoConfig.for_model(model_type, **known | SPECIAL.get(model_type, {}))
    except Exception as error:  # the rules of 189 configs
        print(f"{model_type}: inspected at its default size ({type(error).__name__})", file=sys.stderr)
        return plain


def _tiny_wrapper(plain: Any) -> Any:
    """A small config of a text model with a tower for images."""
    from transformers import AutoConfig

    parts = {}
    for name, sizes in (("text_config", SIZES), ("vision_config", TOWER)):
        part = getattr(plain, name)
        if part is None:
            continue
        given = part.to_dict()
        known = {size: value for size, value in sizes.items() if given.get(size) is not None}
        parts[name] = {**known, "model_type": part.model_type}
    try:
        return AutoConfig.for_model(plain.model_type, **parts)
    except Exception as error:  # as above
        print(f"{plain.model_type}: inspected at its default size ({type(error).__name__})", file=sys.stderr)
        return plain


def tiny_model(model_type: str) -> Any:
    """A model of random weights, its norms and biases too, in float32 with eager attention."""
    from uniattn_pl.families.encoder_decoder import auto_model

    torch.manual_seed(0)
    config = tiny_config(model_type)
    model = auto_model(config).from_config(config, attn_implementation="eager").eval().float()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def tokens() -> torch.Tensor:
    """Random ids [2, LENGTH], none of them special."""
    return torch.randint(3, SIZES["vocab_size"], (2, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def whole_and_in_steps(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Logits [B, L, vocabulary] of one forward, and of steps with a cache."""
    from transformers import DynamicCache, EncoderDecoderCache

    from uniattn_pl.families.encoder_decoder import has_encoder

    name, source, cache = "input_ids", {}, DynamicCache(config=model.config)
    if has_encoder(model.config):  # which reads the first tokens as its source
        name, source = "decoder_input_ids", {"encoder_outputs": model.get_encoder()(input_ids=ids[:, :SOURCE])}
        cache = EncoderDecoderCache(DynamicCache(config=model.get_decoder().config), DynamicCache())
    whole = model(**source, **{name: ids}, use_cache=False).logits
    steps = [
        model(**source, **{name: part}, past_key_values=cache, use_cache=True).logits for part in ids.split(STEPS, 1)
    ]
    return [whole, torch.cat(steps, dim=1)]


def outcome(model: Any, plan: Any) -> Outcome:
    """Convert a copy of `model` and compare it with the stock one under exchanged attention."""
    from uniattn_pl import unmodified_copy
    from uniattn_pl.errors import UserError
    from uniattn_pl.modeling.conversion.convert import apply_plan

    try:
        converted = apply_plan(copy.deepcopy(model), plan) if plan.operated else unmodified_copy(model)
    except UserError as refusal:
        return Outcome(REFUSED, str(refusal))
    except Exception as error:  # whatever it is, it is the finding
        return Outcome(CRASH, f"converting: {type(error).__name__}: {error}")
    try:
        found = whole_and_in_steps(converted, tokens())
    except Exception as error:
        return Outcome(CRASH, f"running: {type(error).__name__}: {error}")
    try:
        with exchanged(model, plan):
            expected = whole_and_in_steps(model, tokens())
    except Exception as error:
        return Outcome(UNKNOWN, f"the stock model: {type(error).__name__}: {error}")
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))
    return Outcome(EXACT) if difference < TOLERANCE else Outcome(WRONG, f"logits differ by {difference:.1e}")


def outcomes(model_type: str) -> dict[str, Outcome]:
    """Role -> what becomes of it. What inspection refuses is not built: wrappers of text models are never tiny."""
    from uniattn_pl.errors import UserError
    from uniattn_pl.families.model_shape import shape_of

    try:
        config = tiny_config(model_type)
    except Exception as error:  # as above
        reason = f"transformers makes no config of its own of this type ({type(error).__name__})"
        return dict.fromkeys(ROLES, Outcome(REFUSED, reason))
    try:
        shape = shape_of(config)
    except UserError as refusal:
        return dict.fromkeys(ROLES, Outcome(REFUSED, str(refusal)))
    except Exception as error:  # whatever it is, it is the finding
        return dict.fromkeys(ROLES, Outcome(CRASH, f"inspecting: {type(error).__name__}: {error}"))
    model = tiny_model(model_type)
    return {role: outcome(model, plan_of(role, shape)) for role in ROLES}


def row(model_type: str, found: dict[str, Outcome]) -> dict[str, str]:
    """A row of the table: its cells by column."""
    verdicts = {outcome.verdict for outcome in found.values()}
    reasons = list(dict.fromkeys(_short(o.reason, model_type) for o in found.values() if o.verdict != EXACT))
    by_role = {role: outcome.verdict for role, outcome in found.items()}
    if len(verdicts) == 1 and EXACT not in verdicts:
        by_role |= dict.fromkeys(list(by_role)[1:], "")
    return {"key": model_type, "type": model_type, **by_role, "why": "; ".join(reasons)}


def _short(reason: str, model_type: str) -> str:
    for words in (f"model type '{model_type}' is not supported: ", f"model type '{model_type}': "):
        reason = reason.removeprefix(words)
    return reason.split(" Supported: ")[0].split("\n")[0].replace("|", "/")[:220].rstrip(".")


DATA = Path(__file__).parent / "results" / "data" / "families.json"
PROVENANCE = {
    "title": "Every language model type of transformers",
    "commands": ["python -m benchmarks.families --write"],
    "model": "each type of transformers 5.23 as a tiny model of random weights, float32",
    "data": f"{LENGTH} tokens in one forward, and in steps with a cache",
    "machine": "any",
    "took": "5 minutes on one core",
    "seeds": None,
    "lead": False,
}


def every_type() -> list[str]:
    """Causal language models, and those with an encoder."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    from uniattn_pl.families.encoder_decoder import has_encoder

    beside = {name for name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if has_encoder(CONFIG_MAPPING[name])}
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *beside})


def main(names: list[str], write: bool, say: Callable[[str], None] = print) -> int:
    """Try every type, print the table and write its numbers; the exit code."""

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows, counts = [], Counter[str]()
    for model_type in names or every_type():
        found = outcomes(model_type)
        rows.append(row(model_type, found))
        counts.update({outcome.verdict for outcome in found.values()})
        say(" | ".join(list(rows[-1].values())[1:]))
    say(", ".join(f"{verdict} {count}" for verdict, count in counts.most_common()))
    if write:
        DATA.write_text(one_row_a_line(content(rows, counts)), encoding="utf-8")
    return int(bool(counts[WRONG] or counts[CRASH]))


def content(rows: list[dict[str, str]], counts: Counter[str]) -> dict[str, Any]:
    """The measurement, as `python -m benchmarks.results` reads it."""
    titles = {"type": "type", **{role: role for role in ROLES}, "why": "why not"}
    figures = {name: counts[name] for name in (EXACT, REFUSED, WRONG, CRASH)}
    columns = [{"key": key, "title": title} for key, title in titles.items()]
    return {**PROVENANCE, "columns": columns, "rows": rows, "figures": figures}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TYPE")
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/results/data/families.json, if all are tried"
    )
    arguments = parser.parse_args()
    if arguments.write and arguments.names:
        parser.error("--write is of all types: name none.")
    raise SystemExit(main(arguments.names, arguments.write))
