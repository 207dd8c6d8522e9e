"""How much blocks, one or several in a row, change the residual stream (ShortGPT, ReplaceMe)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from uniattn_pl.calibration.layers import Batch, layer_inputs
from uniattn_pl.families.inspection import decoder_layers
from uniattn_pl.families.passed_layers import hidden_of


@torch.no_grad()
def block_influence(model: PreTrainedModel, batches: Sequence[Batch], span: int = 1) -> list[float]:
    """By first block i, the mean over tokens of 1 - cos(x_i, x_{i + span}) of the streams x_i [d] entering block i.

    With `span` 1 it is ShortGPT's Block Influence (arXiv 2403.03853); of more blocks the cosine distance by which
    ReplaceMe chooses a run (arXiv 2505.02819). One number fewer than blocks for each block more in the span.

    Args:
        model: stock or converted.
        batches: input_ids and attention_mask [B, L].
        span: blocks in a row.
    """
    layers = decoder_layers(model)
    totals, tokens = torch.zeros(len(layers) - span + 1, dtype=torch.float64), 0
    for batch in batches:
        inputs = layer_inputs(model, batch)
        mask = batch["attention_mask"].bool().to(model.device)
        tokens += int(mask.sum())
        streams = [inputs.hidden]  # the last `span` of them
        for index, layer in enumerate(layers):
            streams.append(hidden_of(layer(streams[-1], **inputs.arguments[index])))
            if len(streams) > span:
                cosine = torch.cosine_similarity(streams.pop(0).float(), streams[-1].float(), dim=-1)
                totals[index + 1 - span] += (1 - cosine)[mask].double().sum().cpu()
    return (totals / max(tokens, 1)).tolist()
