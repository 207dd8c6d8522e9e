"""The cache of a windowed layer: its last tokens and its first ones, and no others."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from uniattn_pl.modeling.caches.token_spans import SpanRule


class WindowLayer(DynamicLayer):
    """Keys and values [B, Hkv, K, D] of the tokens that a later query may see; between forwards no more than those.

    It reports the tokens it has seen, as if all were held: the model makes its masks, and counts positions, by that.
    `positions` [B or 1, K] are those of what is held; None: all are there.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.positions: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, Hkv, L, D]; returns what is held with it. `give_up` follows in the same forward."""
        self.seen += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    def give_up(self, rule: SpanRule) -> None:
        """Hold from now on what the rule of this forward keeps."""
        self.positions = rule.positions
        if rule.keep is None:
            return
        for name in ("keys", "values"):
            held = getattr(self, name)  # [B, Hkv, K + L, D]
            index = rule.keep[:, None, :, None].expand(*held.shape[:2], -1, held.shape[-1])
            setattr(self, name, held.gather(2, index))

    def get_seq_length(self) -> int:
        """Tokens seen: the next one's position."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if all were held; the layer's attention takes the columns that are."""
        return self.seen + query_length, 0

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.seen, self.positions = 0, None

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: tokens that have gone do not come back."""
        raise NotImplementedError("a window cannot take tokens back, which assisted and prompt-lookup decoding need.")

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
