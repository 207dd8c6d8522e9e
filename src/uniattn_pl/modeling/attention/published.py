"""What layers publish for the layers above that read from them, during one forward.

It travels in the forward's keyword arguments: never through the cache (absent in training) and never on a module
(stale under gradient checkpointing).
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from uniattn_pl.kernels.grouped import masked_span
from uniattn_pl.kernels.map_handles import MapHandle, ReplayedMap
from uniattn_pl.kernels.map_memory import MapBuffers
from uniattn_pl.kernels.triton_maps.tile_layout import MaskStructure, structure_of
from uniattn_pl.modeling.caches.token_spans import SpanRule, TokenSpan, span_rule
from uniattn_pl.plan.roles import KEY_VALUE, MAP

Rotary = tuple[torch.Tensor, torch.Tensor] | torch.Tensor
"""Cosine and sine [B, L, D], or both in one complex table (DeepSeek-V2)."""


@dataclass
class Published:
    """What one source layer gives its readers.

    Attributes:
        map: a handle on its attention map, for readers of maps.
        key, value: [B, Hkv, S, D], for readers of keys and values.
        position_embeddings: cosine and sine [B, L, D], by which a reader's queries are rotated to match the keys.
        mask, arguments: what the source's kernel was called with.
        cross: the same of the source's attention to the states of an encoder, for readers of its map.
    """

    map: MapHandle | None = None
    key: torch.Tensor | None = None
    value: torch.Tensor | None = None
    position_embeddings: Rotary | None = None
    mask: torch.Tensor | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    cross: Published | None = None

    @property
    def replayed(self) -> ReplayedMap:
        """The handle on a map that is computed again. Raises TypeError where the map itself was kept."""
        if not isinstance(self.map, ReplayedMap):
            raise TypeError("this source published no queries and keys; set config.reuse_mode to 'replay' first.")
        return self.map

    def tensors(self) -> dict[str, torch.Tensor]:
        """What must be kept to publish the same again, `from_tensors`: query, key and value as far as there are."""
        key = self.replayed.key if self.map is not None else self.key
        every = {"query": self.replayed.query if self.map is not None else None, "key": key, "value": self.value}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, torch.Tensor],
        publishes: frozenset[str],
        *,
        mask: torch.Tensor | None,
        arguments: Mapping[str, Any],
        position_embeddings: Rotary | None,
    ) -> Published:
        """The inverse of `tensors`, for a source that publishes a map, keys and values, or both."""
        handle = None
        if MAP in publishes:
            handle = ReplayedMap(tensors["query"], tensors["key"], mask, arguments)
        key, value = (tensors["key"], tensors["value"]) if KEY_VALUE in publishes else (None, None)
        return cls(handle, key, value, position_embeddings, mask, arguments)

    def to(self, device: torch.device | str, *, non_blocking: bool) -> Published:
        """The same with every tensor on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        if self.map is not None:
            moved["map"] = self.map.to(device, non_blocking=non_blocking)
        if self.cross is not None:
            moved["cross"] = self.cross.to(device, non_blocking=non_blocking)
        if self.position_embeddings is not None:
            tables = self.position_embeddings
            moved["position_embeddings"] = (
                tables.to(device) if isinstance(tables, torch.Tensor) else tuple(table.to(device) for table in tables)
            )
        return replace(self, **moved)


class EvictingCache(Protocol):
    """A cache that gives tokens up by the attention they had (`caches/h2o_cache.py`); `root` names a layer's keys."""

    def observes(self, root: int) -> bool:
        """Whether the attention to the keys of layer `root` is to be summed."""

    def visible(self, root: int, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Of a mask over all tokens there were, the columns that layer `root` still holds."""

    def observe(self, root: int, attention_map: torch.Tensor, num_groups: int, mask: torch.Tensor | None) -> None:
        """Sum what the queries of a map give to each token."""


class Publications(UserDict[int, Published]):
    """Source layer index -> Published, for one forward. A UserDict, because FSDP2 casts plain dicts it finds.

    `late` holds, by layer and only inside that layer's forward, what its W_c adds after the feed-forward; `buffers`
    is the memory for maps that are kept; `eviction` the cache, where it gives tokens up.
    """

    def __init__(self, buffers: MapBuffers | None = None, eviction: EvictingCache | None = None) -> None:
        super().__init__()
        self.eviction = eviction
        self.late: dict[int, torch.Tensor] = {}
        self.buffers = MapBuffers() if buffers is None else buffers
        self.buffers.begin_forward()
        self._masked: dict[int, tuple[torch.Tensor, tuple[int, int]]] = {}
        self._structures: dict[tuple[int, int | None], tuple[torch.Tensor, MaskStructure | None]] = {}
        self._spans: dict[tuple[int, TokenSpan], tuple[torch.Tensor | None, SpanRule]] = {}

    def masked_span(self, mask: torch.Tensor) -> tuple[int, int]:
        """Of a mask that the layers of this forward have in common, looked at once."""
        if id(mask) not in self._masked:
            self._masked[id(mask)] = mask, masked_span(mask)  # kept, so that no other mask gets its id
        return self._masked[id(mask)][1]

    def structure(self, mask: torch.Tensor | None, queries: int, window: int | None) -> MaskStructure | None:
        """Of a mask that layers of this forward have in common, looked at once."""
        if mask is None:
            return structure_of(None, queries=queries, window=window)
        known = id(mask), window
        if known not in self._structures:
            self._structures[known] = mask, structure_of(mask, queries=queries, window=window)
        return self._structures[known][1]

    def span_rule(
        self, mask: torch.Tensor | None, span: TokenSpan, positions: torch.Tensor | None, device: torch.device
    ) -> SpanRule:
        """Of windowed layers that have mask and span, and so what they hold, in common: made once."""
        known = id(mask), span
        if known not in self._spans:
            self._spans[known] = mask, span_rule(mask, span, positions, device)
        return self._spans[known][1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Publications:
        """Move every tensor, as accelerate asks when layers live on several devices."""
        for index, entry in self.items():
            self[index] = entry.to(device, non_blocking=non_blocking)
        return self
