"""Role `drop`: no attention (LLMDrop)."""

from __future__ import annotations

from typing import Any

import torch

from uniattn_pl.modeling.attention.operated import OperatedAttention
from uniattn_pl.modeling.attention.position_bias import ARGUMENT
from uniattn_pl.modeling.attention.recorded_maps import recorded


class DropAttention(OperatedAttention):
    """Nothing, or the compensation alone: norm(x) W_c. Cost: caches nothing, computes W_c."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[Any, ...]:
        nothing = torch.zeros_like(hidden_states)  # [B, L, d]
        handed_on = (kwargs[ARGUMENT],) if ARGUMENT in kwargs else ()  # T5, from layer to layer
        others = (*handed_on, recorded(self, None, nothing))
        if self.w_c is None:
            return nothing, *others
        return self.add(nothing, self.w_c(hidden_states), kwargs), *others
