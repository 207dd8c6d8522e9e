"""Role `skip`: a decoder layer that is left out whole (ShortGPT, arXiv 2403.03853)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uniattn_pl.families.inspection import attention_of, attention_path


class SkippedBlock(nn.Module):
    """Hands on the stream that enters it, x, or with a compensation x + x W_c; caches nothing.

    The family's own class is its other base. Its attention, a dropped one, stays as the place of W_c.
    """

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Shapes: hidden_states and what it returns [B, L, d]."""
        # Called without a W_c too: what records attention maps counts one call per layer.
        attention = attention_of(self)
        added, _ = attention(hidden_states=hidden_states, **kwargs)
        return hidden_states if attention.w_c is None else hidden_states + added


_SKIPPED: dict[type, type] = {}


def skip_block(layer: Any) -> None:
    """Turn a decoder layer whose attention is dropped into a skipped one, in place: all else of it is deleted."""
    if isinstance(layer, SkippedBlock):
        return
    stock, kept = type(layer), str(attention_path(layer)).split(".")[0]
    for name in [name for name, _ in layer.named_children() if name != kept]:
        delattr(layer, name)
    for name in [name for name, _ in layer.named_parameters(recurse=False)]:
        delattr(layer, name)
    if stock not in _SKIPPED:
        # Of the same name: by it transformers keeps a layer on one device.
        _SKIPPED[stock] = type(stock.__name__, (SkippedBlock, stock), {"__module__": stock.__module__})
    layer.__class__ = _SKIPPED[stock]
