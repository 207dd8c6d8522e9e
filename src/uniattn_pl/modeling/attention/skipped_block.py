"""Role `skip`: a decoder layer that is left out whole (ShortGPT, arXiv 2403.03853)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from uniattn_pl.families.inspection import attention_of, attention_path

HANDED_ON_BESIDE = ("position_bias", "encoder_decoder_position_bias")
"""What a T5's layers give the next one beside the stream, of self-attention and of cross-attention."""


class SkippedBlock(nn.Module):
    """Hands on the stream that enters it, x, or with a compensation x + x W_c; caches nothing.

    The family's own class is its other base. Its attention, a dropped one, stays as the place of W_c.

    Attributes:
        argument_names: of the family's forward, behind the hidden states.
    """

    argument_names: tuple[str, ...]

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Shapes: hidden_states and what it returns [B, L, d]."""
        named = {**dict(zip(self.argument_names, args, strict=False)), **kwargs}
        # Called without a W_c too: what records attention maps counts one call per layer.
        attention = attention_of(self)
        added, *_ = attention(hidden_states=hidden_states, **named)
        stream = hidden_states if attention.w_c is None else hidden_states + added
        if HANDED_ON_BESIDE[0] not in self.argument_names:
            return stream
        return stream, *(named.get(name) for name in HANDED_ON_BESIDE)


_SKIPPED: dict[type, type] = {}


def skip_block(layer: Any) -> None:
    """Turn a decoder layer whose attention is dropped into a skipped one, in place: all else of it is deleted."""
    if isinstance(layer, SkippedBlock):
        return
    stock, owner = type(layer), layer
    for kept in str(attention_path(layer)).split("."):
        for name in [name for name, _ in owner.named_children() if name != kept]:
            delattr(owner, name)
        for name in [name for name, _ in owner.named_parameters(recurse=False)]:
            delattr(owner, name)
        owner = owner.get_submodule(kept)
    if stock not in _SKIPPED:
        members = {
            "__module__": stock.__module__,
            "argument_names": tuple(inspect.signature(stock.forward).parameters)[2:],
        }
        # Of the same name: by it transformers keeps a layer on one device.
        _SKIPPED[stock] = type(stock.__name__, (SkippedBlock, stock), members)
    layer.__class__ = _SKIPPED[stock]
