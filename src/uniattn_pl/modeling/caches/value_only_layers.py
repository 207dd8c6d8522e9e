"""Layers of a cache that hold one of the two tensors which a family's forward gives them: values without keys."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from uniattn_pl.modeling.caches.growing_layer import GrowingLayer


class OneOfTwo:
    """Holds the second of [B, Hkv, S, D], or, where `keeps_first`, the first, with a width of 0 for the other.

    Latent attentions (DeepSeek) give the latent first, which values are made of, and the rotated part of keys second.
    """

    keeps_first = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append one of [B, Hkv, L, D]; returns all of it, and in place of the other zeros, which nobody looks at."""
        if self.keeps_first:
            first, _ = super().update(key_states, value_states[..., :0], *args, **kwargs)  # type: ignore[misc]
            return first, _zeros(first, value_states.shape[-1])
        _, second = super().update(key_states[..., :0], value_states, *args, **kwargs)  # type: ignore[misc]
        return _zeros(second, key_states.shape[-1]), second


def _zeros(like: torch.Tensor, width: int) -> torch.Tensor:
    return like.new_zeros(()).expand(*like.shape[:-1], width)


class GrowingOneOfTwo(OneOfTwo):
    """One that grows, by what it holds: stock layers report length 0 for empty keys, and beam search then silently
    skips reordering."""

    def get_seq_length(self) -> int:
        held: Any = self.keys if self.keeps_first else self.values  # type: ignore[attr-defined]
        return 0 if held is None or held.numel() == 0 else int(held.shape[-2])


class ValueOnlyLayer(GrowingOneOfTwo, GrowingLayer):
    """A growing one."""


class ValueOnlySourceLayer(GrowingOneOfTwo, DynamicLayer):
    """One that is given its tokens once, those of an encoder, and has no room for more."""


class ValueOnlySlidingLayer(OneOfTwo, DynamicSlidingWindowLayer):
    """One that slides."""


class ValueOnlyStaticLayer(OneOfTwo, StaticLayer):
    """One of a fixed size."""


class ValueOnlyStaticSlidingLayer(OneOfTwo, StaticSlidingWindowLayer):
    """One of a fixed size that slides."""


class ValueOnlyHybridLayer(GrowingOneOfTwo, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc,override]
    """One beside the states of a recurrence (Falcon-H1)."""
