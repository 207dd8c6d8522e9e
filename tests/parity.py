"""The official code's recorded numbers (fixtures/parity_llama/README.md) and models that must reproduce them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

FOLDER = Path(__file__).parent / "fixtures" / "parity_llama"
REUSE_LAYERS = (5, 6, 7)
# The recordings were made with AVX-512; without it sums are taken in another order, in stock models, too.
ROUNDS_ALIKE = torch.backends.cpu.get_cpu_capability() == "AVX512"


def recorded(prefix: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The recorded tensors whose names start with `prefix.`, without it."""
    tensors = load_file(FOLDER / "recorded.safetensors", device=device)
    return {name.removeprefix(prefix + "."): t for name, t in tensors.items() if name.startswith(prefix + ".")}


def stock_llama(attn_implementation: str = "sdpa") -> PreTrainedModel:
    """The tiny stock model all fixtures share."""
    config = LlamaConfig(**json.loads((FOLDER / "config.json").read_text()), attn_implementation=attn_implementation)
    model = LlamaForCausalLM(config)
    model.load_state_dict(load_file(FOLDER / "weights.safetensors"))
    return model.eval()


def uniattn_plan(*, compensated: bool) -> LayerPlan:
    """One Superblock: layers 5 to 7 reuse the map of layer 4."""
    return LayerPlan.unmodified(8).reuse(REUSE_LAYERS, 4, compensated=compensated)


def uniattn_llama(w_c: dict[int, torch.Tensor] | None, attn_implementation: str = "sdpa") -> PreTrainedModel:
    """The converted model, with a W_c [d, d] per reuse layer, or without any."""
    model = apply_plan(stock_llama(attn_implementation), uniattn_plan(compensated=w_c is not None))
    for layer, weight in (w_c or {}).items():
        model.get_submodule(f"model.layers.{layer}.self_attn.w_c").load_state_dict({"weight": weight})
    return model
