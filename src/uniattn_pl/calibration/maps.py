"""Attention maps, a few query rows at a time, from what a layer published."""

from __future__ import annotations

import torch

from uniattn_pl.errors import UserError
from uniattn_pl.kernels.grouped import additive_mask
from uniattn_pl.kernels.map_handles import ReplayedMap
from uniattn_pl.kernels.triton_maps.tile_layout import MaskStructure


def map_rows(replayed: ReplayedMap, sequence: int, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of one sequence's attention map [H, C, S] in float32, as the eager kernel computes it.

    Raises:
        UserError: FlexAttention has a function in place of a mask.
    """
    query, key = replayed.query, replayed.key
    groups = query.shape[1] // key.shape[1]
    keys = key[sequence].repeat_interleave(groups, dim=0).float()  # [H, S, D]
    rows = query[sequence, :, start:stop].float()  # [H, C, D]
    scores = rows @ keys.transpose(-1, -2) * replayed.arguments["scaling"]  # [H, C, S]
    cap = replayed.arguments.get("softcap")
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    mask = additive_mask(_whole_mask(replayed), query, key)
    if mask is not None:
        scores = scores + mask[sequence if len(mask) > 1 else 0, :, start:stop, : key.shape[-2]].float()
    return scores.softmax(dim=-1)


def _whole_mask(replayed: ReplayedMap) -> torch.Tensor | None:
    """The mask [B or 1, 1, L, S] of a map; FlashAttention takes padding [B, S] alone and knows the rest itself."""
    mask, window = replayed.mask, replayed.arguments.get("sliding_window")
    queries, keys = replayed.query.shape[-2], replayed.key.shape[-2]
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise UserError("flex_attention takes functions as masks, by which no map can be computed; use sdpa.")
    if mask is not None and mask.dim() == 4:
        return mask
    seen = MaskStructure(keys - queries, window).as_mask(queries, keys, replayed.key.device)
    return seen if mask is None else seen & mask.bool()[:, None, None]
