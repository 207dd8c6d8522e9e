"""Models of random weights, built on the device: costs depend on shapes alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import uniattn_pl
from uniattn_pl.families.published_sizes import LLAMA_3_1_8B

TINY_SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}
# paper Table 6, layers counted from 0
DROPPED = [18, 21, 19, 20, 26, 22, 29, 28, 27, 25, 23, 24]
STOCK, EAGER, TILES = "stock", "stock eager", "uniattn, maps kept in tiles"
STEPPED = (STOCK, "uniattn", "llmdrop", "cla")
"""Of these steps and capacity are measured as well; the others are about prompts."""


def compared_models(*, tiny: bool) -> dict[str, dict[str, Any]]:
    """Name -> options of `build`: the paper's settings on Llama-3.1-8B; what matters most first."""
    blocks = {"superblock_size": 2 if tiny else 4, "num_superblocks": 2 if tiny else 4}
    models: dict[str, dict[str, Any]] = {
        STOCK: {"architecture": None},
        "uniattn": {"architecture": "uniattn", **blocks},
        EAGER: {"architecture": None, "attention": "eager"},
        "llmdrop": {"architecture": "llmdrop", "layers": [5, 7] if tiny else DROPPED},
        "cla": {"architecture": "cla", **blocks},
        TILES: {"architecture": "uniattn", **blocks, "reuse_mode": "tiles"},
        "uniattn without W_c": {"architecture": "uniattn", **blocks, "compensation": False},
    }
    return {name: models[name] for name in (STOCK, "uniattn", EAGER, "cla")} if tiny else models


def build(
    device: str,
    *,
    tiny: bool,
    architecture: str | None,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.bfloat16,
    reuse_mode: str = "auto",
    **options: Any,
) -> PreTrainedModel:
    """A model on the device; `architecture` None: as transformers has it."""
    torch.manual_seed(0)
    config = LlamaConfig(**(TINY_SIZES if tiny else LLAMA_3_1_8B), attn_implementation=attention)
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 8B parameters in float32 first would take twice the time and memory
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(former)
    if architecture is not None:
        uniattn_pl.apply_architecture(model, architecture, **options)
        model.config.reuse_mode = reuse_mode
    return model.to(device=device, dtype=dtype)
