"""Attention maps, a few query rows at a time, from what a layer published."""

from __future__ import annotations

from typing import cast

import torch

from uniattn_pl.modeling.attention.publishing import Published, additive_mask


def map_rows(entry: Published, sequence: int, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of one sequence's attention map [H, C, S] in float32, as the eager kernel computes it."""
    query, key = cast("torch.Tensor", entry.query), cast("torch.Tensor", entry.key)
    groups = query.shape[1] // key.shape[1]
    keys = key[sequence].repeat_interleave(groups, dim=0).float()
    scores = query[sequence, :, start:stop].float() @ keys.transpose(-1, -2) * entry.kwargs["scaling"]
    cap = entry.kwargs.get("softcap")
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    mask = additive_mask(entry.mask, query, key)
    if mask is not None:
        scores = scores + mask[sequence if len(mask) > 1 else 0, :, start:stop, : key.shape[-2]].float()
    return scores.softmax(dim=-1)
