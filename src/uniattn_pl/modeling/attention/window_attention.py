"""Role `window`: the last tokens and the first few (StreamingLLM)."""

from __future__ import annotations

from typing import Any

import torch

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import PUBLICATIONS
from uniattn_pl.kernels.stock import backend_name, has_maps
from uniattn_pl.modeling.attention.complete_attention import CompleteAttention
from uniattn_pl.modeling.attention.published import Publications
from uniattn_pl.modeling.caches.token_spans import TokenSpan
from uniattn_pl.modeling.caches.window_layer import WindowLayer


class WindowAttention(CompleteAttention):
    """The family's attention over the last w tokens of what each query sees, and the first s (Xiao et al. 2024).

    Keys are cached rotated by their true positions: with a cache it computes what it computes without one. (The
    paper's code counts positions within the cache instead, for texts longer than the model was made for.)
    Cost: caches w - 1 + s tokens; a mask [B or 1, 1, L, S] of its own per forward, which such layers have in common.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        if not has_maps(self.config):
            raise UserError(no_windows(self.config))
        publications: Publications = kwargs[PUBLICATIONS]
        own = getattr(past_key_values, "self_attention_cache", past_key_values)  # beside one of cross-attention
        layer: WindowLayer | None = None if own is None else own.layers[self.layer_idx]
        row, length = self.layer_row, hidden_states.shape[1]
        assert row.window is not None, "a row of this role has a window"
        span = TokenSpan(row.window, row.sinks, 0 if layer is None else layer.seen, length)
        positions = None if layer is None else layer.positions
        rule = publications.span_rule(attention_mask, span, positions, hidden_states.device)
        output = super().forward(hidden_states, attention_mask=rule.mask, past_key_values=past_key_values, **kwargs)
        if layer is not None:
            layer.give_up(rule)
        return output


def no_windows(config: Any) -> str:
    """What is said of a kernel that takes no mask in which a window with first tokens could be put."""
    return f"a plan with windows needs a kernel that takes masks (sdpa or eager); {backend_name(config)} takes none."
