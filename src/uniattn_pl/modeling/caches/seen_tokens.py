"""A cached layer that counts the tokens it has seen, of which it may hold fewer."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class SeenTokensLayer(DynamicLayer):
    """Reports the tokens it has seen, as if all were held: the model makes its masks, and counts positions, by that.

    Attributes:
        what: names it where it refuses.
    """

    is_croppable = False
    what = "this cache"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, Hkv, L, D]; returns all that is held."""
        self.seen += value_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        """Tokens seen: the next one's position."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if all were held; whoever attends takes the columns that are."""
        return self.seen + query_length, 0

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.seen = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: tokens that have gone do not come back."""
        raise NotImplementedError(
            f"{self.what} cannot take tokens back, which assisted and prompt-lookup decoding need."
        )
