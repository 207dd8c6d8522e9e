"""Attention maps, a few query rows at a time, from what a layer published."""

from __future__ import annotations

import torch

from uniattn_pl.kernels.grouped import additive_mask
from uniattn_pl.kernels.map_handles import ReplayedMap


def map_rows(replayed: ReplayedMap, sequence: int, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of one sequence's attention map [H, C, S] in float32, as the eager kernel computes it."""
    query, key = replayed.query, replayed.key
    groups = query.shape[1] // key.shape[1]
    keys = key[sequence].repeat_interleave(groups, dim=0).float()  # [H, S, D]
    rows = query[sequence, :, start:stop].float()  # [H, C, D]
    scores = rows @ keys.transpose(-1, -2) * replayed.arguments["scaling"]  # [H, C, S]
    cap = replayed.arguments.get("softcap")
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    mask = additive_mask(replayed.mask, query, key)
    if mask is not None:
        scores = scores + mask[sequence if len(mask) > 1 else 0, :, start:stop, : key.shape[-2]].float()
    return scores.softmax(dim=-1)
