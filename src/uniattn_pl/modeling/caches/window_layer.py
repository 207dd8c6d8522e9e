"""The cache of a windowed layer: its last tokens and its first ones, and no others."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import LinearAttentionAndFullAttentionLayer

from uniattn_pl.modeling.caches.seen_tokens import SeenTokensLayer
from uniattn_pl.modeling.caches.token_spans import SpanRule


class WindowLayer(SeenTokensLayer):
    """Keys and values [B, Hkv, K, D] of the tokens that a later query may see; between forwards no more than those.

    After an update `give_up` follows in the same forward. `positions` [B or 1, K] are those of what is held; None: all
    are there.
    """

    what = "a window"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.positions: torch.Tensor | None = None

    def give_up(self, rule: SpanRule) -> None:
        """Hold from now on what the rule of this forward keeps."""
        self.positions = rule.positions
        if rule.keep is None:
            return
        for name in ("keys", "values"):
            held = getattr(self, name)  # [B, Hkv, K + L, D]
            index = rule.keep[:, None, :, None].expand(*held.shape[:2], -1, held.shape[-1])
            setattr(self, name, held.gather(2, index))

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.positions = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Give every beam the tokens of the one it continues."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences of the batch."""
        super().batch_select_indices(indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch."""
        super().batch_repeat_interleave(repeats)
        if self.positions is not None and len(self.positions) > 1:
            self.positions = self.positions.repeat_interleave(repeats, dim=0)

    def _select(self, indices: torch.Tensor) -> None:
        if self.positions is not None and len(self.positions) > 1:
            self.positions = self.positions[indices.to(self.positions.device)]


class WindowHybridLayer(WindowLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc]
    """One beside the states of a recurrence (Falcon-H1)."""
