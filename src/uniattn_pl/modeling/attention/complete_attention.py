"""What the attentions have in common that keep all projections: their family's own forward, and a W_c beside it."""

from __future__ import annotations

from typing import Any

import torch

from uniattn_pl.families.inspection import PUBLICATIONS
from uniattn_pl.modeling.attention.operated import OperatedAttention


class CompleteAttention(OperatedAttention):
    """The family's forward as it is, norms, rotation, caps and all; W_c reads what enters the attention."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        # The family's class is the next base (operate.py); its output has had the family's dropout already.
        output, *others = super().forward(hidden_states, *args, **kwargs)
        if self.w_c is None:
            return output, *others
        correction = self.w_c(hidden_states)
        if self.adds_late:
            kwargs[PUBLICATIONS].late[self.layer_idx] = correction
            return output, *others
        return output + self.drop_out(correction), *others
