"""The depth factor: how much each layer still changes its input (paper Assumption 3.5, Propositions 3.6 and 3.8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.calibration.layers import Batch
from uniattn_pl.families.inspection import decoder_layers, decoder_of


@torch.no_grad()
def depth_factor(model: PreTrainedModel, batches: Sequence[Batch]) -> list[float]:
    """By layer, the mean over tokens of ||delta|| / ||x||, where x [d] enters the layer and x + delta leaves it.

    Args:
        model: stock or converted.
        batches: input_ids and attention_mask [B, L].
    """
    layers = decoder_layers(model)
    totals, tokens = torch.zeros(len(layers), dtype=torch.float64), 0
    mask = torch.zeros(0)

    def watch(index: int) -> Any:
        def hook(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            entering, leaving = args[0].float(), output.float()
            ratio = (leaving - entering).norm(dim=-1) / entering.norm(dim=-1)
            totals[index] += ratio[mask].double().sum().cpu()

        return hook

    handles = [layer.register_forward_hook(watch(index)) for index, layer in enumerate(layers)]
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool().to(model.device)
            tokens += int(mask.sum())
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
            decoder_of(model)(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return (totals / max(tokens, 1)).tolist()
