"""What `output_attentions` gives of a model with a plan: one entry per layer, None where a layer has no map."""

from __future__ import annotations

from typing import Any

import torch

from uniattn_pl.kernels.stock import EAGER, backend_name
from uniattn_pl.plan import LayerPlan


def recorded(attention: Any, attention_map: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """The map [B, H, L, S] that transformers is to record of an attention, or an empty tensor that keeps its place.

    transformers leaves out a layer that returns None, and every later one would be taken for the layer below it. As
    with stock models only eager attention gives maps: others write theirs into memory that the next forward uses again.
    """
    if attention_map is None or backend_name(attention.config) != EAGER:
        return like.new_empty(0)
    return attention_map


def without_placeholders(maps: tuple[Any, ...], plan: LayerPlan) -> tuple[Any, ...]:
    """None for every empty tensor of `recorded`, and for blocks that are left out where nothing kept their place: of
    cross-attention, and of T5's, whose maps are taken from what stands around the attention."""
    found = [None if isinstance(entry, torch.Tensor) and entry.numel() == 0 else entry for entry in maps]
    left_out = [row.index for row in plan.rows if not row.traits.feed_forward]
    if len(found) == len(plan.rows) - len(left_out):
        for index in left_out:
            found.insert(index, None)
    return tuple(found)
