"""peft on converted models: low-rank updates of what the plan left, with every W_c trained in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.modeling.families import FUSED, PROJECTIONS, decoder_layers

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(model: PreTrainedModel, *, rank: int = 16, **options: Any) -> LoraConfig:
    """The peft config for a model, stock or converted: its attention projections get adapters, its W_c are unfrozen.

    W_c is saved with the adapter (`modules_to_save`), so an adapter folder holds all that was trained.

    Args:
        model: as `get_peft_model` will be given it.
        rank: of the updates.
        options: other fields of `peft.LoraConfig`; `target_modules` replaces the attention projections.

    Raises:
        UserError: the rank is below 1.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UserError(f"the rank of a LoRA update must be at least 1, got {rank}.")
    attentions = [layer.self_attn for layer in decoder_layers(model)]
    present = {name for attention in attentions for name, _ in attention.named_children()}
    defaults: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name for name in (*PROJECTIONS, FUSED) if name in present],
        "modules_to_save": ["w_c"] if "w_c" in present else None,
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**defaults, **options})
