"""peft on converted models: low-rank updates of what the plan left, with every W_c trained in full."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.families.inspection import FUSED, PROJECTIONS, decoder_layers

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(model: PreTrainedModel, *, rank: int = 16, refitted: Iterable[int] = (), **options: Any) -> LoraConfig:
    """The peft config for a model, stock or converted: its attention projections get adapters, its W_c are unfrozen.

    W_c is saved with the adapter (`modules_to_save`), so an adapter folder holds all that was trained.

    Args:
        model: as `get_peft_model` will be given it.
        rank: of the updates.
        refitted: layers whose W_o calibration has fitted together with W_c; it trains in full, like W_c.
        options: other fields of `peft.LoraConfig`; `target_modules` replaces the attention projections.

    Raises:
        UserError: the rank is below 1.
    """
    from peft import LoraConfig

    if rank < 1:
        raise UserError(f"the rank of a LoRA update must be at least 1, got {rank}.")
    attentions = [layer.self_attn for layer in decoder_layers(model)]
    present = {name for attention in attentions for name, _ in attention.named_children()}
    whole = ["w_c"] if "w_c" in present else []
    outputs = [f"layers.{index}.self_attn.o_proj" for index in refitted]
    defaults: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name for name in (*PROJECTIONS, FUSED) if name in present],
        "modules_to_save": [*whole, *outputs] or None,
        "exclude_modules": outputs or None,
        "task_type": "CAUSAL_LM",
    }
    return LoraConfig(**{**defaults, **options})


def check_target_modules(model: nn.Module, target_modules: Iterable[str]) -> None:
    """Raise UserError when a name of `training.lora.target_modules` is no projection of this model."""
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in target_modules if name not in linear]
    if unknown:
        near, names = did_you_mean(unknown[0], linear), ", ".join(sorted(linear))
        raise UserError(f"training.lora.target_modules: the model has no '{unknown[0]}'.{near} It has {names}.")


@torch.no_grad()
def initialise_updates(model: nn.Module, seed: int) -> None:
    """Start every low-rank update at zero, A random as peft's are, the same on any number of ranks, sharded or not."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            continue
        value = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
        value = value.to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(value)
