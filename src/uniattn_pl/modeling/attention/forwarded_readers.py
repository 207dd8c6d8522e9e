"""Readers of families whose attention does more than plans know: their own forward, and another kernel inside it.

What a family does to queries, keys, values and outputs (clips, gates, scales, norms, a latent) is done by its own code.
Only the function that attends is exchanged, and what the role gave up is stood in for (`absent_parts.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from uniattn_pl.families.inspection import PUBLICATIONS
from uniattn_pl.kernels.interface import apply_map
from uniattn_pl.modeling.attention.complete_attention import CompleteAttention
from uniattn_pl.modeling.attention.published import Publications
from uniattn_pl.modeling.attention.recorded_maps import recorded

WINDOW_ARGUMENT = "sliding_window"


class ForwardedReuse(CompleteAttention):
    """Role `reuse`: the source's map times the values that the family's forward makes (paper eq. 12)."""

    def read_map(self, value: torch.Tensor, publications: Publications) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Shapes: value [B, Hkv, S, Dv]; returns [B, L, H, Dv], and the map to record."""
        handle = self.published({PUBLICATIONS: publications}).map
        assert handle is not None, "the plan has a map published for this layer"
        heads, attention_map = apply_map(handle, value, self, self.head_index)
        return heads.contiguous(), recorded(self, attention_map, heads)  # as kernels give it: some ask for a view


class _NothingHeld:
    """In place of a cache: says how many tokens there were before this forward, and holds none."""

    def __init__(self, seen: int) -> None:
        self.seen = seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states


class ForwardedShareKV(CompleteAttention):
    """Role `share_kv`: the queries that the family's forward makes over the source's keys and values (CLA)."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        rotated_by = self.published(kwargs).position_embeddings
        if rotated_by is not None and kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = rotated_by  # the source's keys were turned by them
        cache = kwargs.get("past_key_values")
        if cache is not None:  # it caches nothing, but may count what came before (Llama-4 scales queries by that)
            seen = cache.get_seq_length(self.key_root) - hidden_states.shape[1]
            kwargs["past_key_values"] = _NothingHeld(seen)
        return super().forward(hidden_states, *args, **kwargs)

    def of_source(
        self, publications: Publications, arguments: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, dict[str, Any]]:
        """The source's keys and values [B, Hkv, S, D or Dv], its mask, and what the reader's kernel is called with."""
        source = self.published({PUBLICATIONS: publications})
        window = {name: source.arguments[name] for name in (WINDOW_ARGUMENT,) if name in source.arguments}
        key, value = cast("torch.Tensor", source.key), cast("torch.Tensor", source.value)
        return key, value, source.mask, {**arguments, **window}
