"""How much each layer's attention changes the residual stream (LLMDrop)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from uniattn_pl.calibration.layers import Batch, WatchPoint, capture, layer_inputs, residual_multiplier
from uniattn_pl.families.anatomy import Anatomy, anatomy_of
from uniattn_pl.families.inspection import attention_of, decoder_layers
from uniattn_pl.families.passed_layers import hidden_of


@torch.no_grad()
def attention_importance(model: PreTrainedModel, batches: Sequence[Batch]) -> list[float]:
    """By layer, the mean over tokens of 1 - cos(x, x + attention(x)): near 0, dropping it changes little.

    inf where there is none to drop.

    Args:
        model: stock or converted.
        batches: input_ids and attention_mask [B, L].
    """
    anatomy = anatomy_of(model.config)
    layers = decoder_layers(model)
    totals, tokens = torch.zeros(len(layers), dtype=torch.float64), 0
    for batch in batches:
        inputs = layer_inputs(model, batch)
        mask = batch["attention_mask"].bool().to(model.device)
        hidden = inputs.hidden
        tokens += int(mask.sum())
        for index, layer in enumerate(layers):
            if attention_of(layer) is None:
                totals[index] = torch.inf
                hidden = hidden_of(layer(hidden, **inputs.arguments[index]))
                continue
            seen: dict[str, torch.Tensor] = {}
            with capture(contribution(layer, anatomy), seen, "added"):
                following = hidden_of(layer(hidden, **inputs.arguments[index]))
            before = hidden.float()
            added = seen["added"].float() * residual_multiplier(layer)
            cosine = torch.cosine_similarity(before, before + added, dim=-1)
            totals[index] += (1 - cosine)[mask].double().sum().cpu()
            hidden = following
    return (totals / max(tokens, 1)).tolist()


def contribution(layer: torch.nn.Module, anatomy: Anatomy) -> WatchPoint:
    """Where what the attention adds to the stream leaves: behind its own norm, where it has one (Gemma, OLMo-2)."""
    own_norm = anatomy.norm_after_attention
    if own_norm is None or own_norm not in anatomy.attention_norms:
        return WatchPoint(attention_of(layer), leaving=True)
    return WatchPoint(layer.get_submodule(own_norm), leaving=True)
