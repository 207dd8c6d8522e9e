"""A layer of a cache that holds nothing, and knows how many tokens there are all the same."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, DummyLayer


class FollowingLayer(DummyLayer, CacheLayerMixin):
    """Counts what another layer holds: T5 asks the cache of every layer for its length, to place its queries.

    Args:
        followed: a layer that holds something of every token.
    """

    is_sliding = False

    def __init__(self, followed: Any) -> None:
        super().__init__()
        self.followed = followed

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is to be held."""

    def get_seq_length(self) -> int:
        return int(self.followed.get_seq_length())

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        sizes: tuple[int, int] = self.followed.get_mask_sizes(query_length)
        return sizes


def follow(layers: list[Any]) -> None:
    """Let layers that hold nothing follow the lowest that does, in place; where none does, there is nothing to know."""
    followed = next((layer for layer in layers if isinstance(layer, CacheLayerMixin)), None)
    for index, layer in enumerate(layers):
        if type(layer) is DummyLayer and followed is not None:
            layers[index] = FollowingLayer(followed)
