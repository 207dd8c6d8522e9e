"""The cache under a plan: K and V for full layers, V alone for reuse layers, nothing for the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from uniattn_pl.kernels.map_memory import MapBuffers, may_write
from uniattn_pl.modeling.caches.window_layer import WindowLayer
from uniattn_pl.plan import LayerPlan

# Tokens that a growing layer has to spare at least, and the shares of what it holds. For a token a 64th: copied that
# often, a cache costs a step 3 % of reading it, and a quarter more would take all that a plan saves. For another chunk
# of a prompt a quarter, which the next chunks fill.
ROOM, SHARE_FOR_TOKENS, SHARE_FOR_CHUNKS = 64, 64, 4


_TRACED: ContextVar[bool] = ContextVar("caches are traced", default=False)
TRACED = "traced"


@contextmanager
def traced_caches() -> Iterator[None]:
    """Let caches that are made inside hold tensors and plain values only, which exporters of graphs can trace."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


class CacheMismatchError(RuntimeError):
    """The KV cache of the converted model does not hold the bytes its plan predicts: a defect, not user input."""


class GrowingLayer(DynamicLayer):
    """A layer of keys and values [B, Hkv, S, D] with room to grow, so that a new token copies nothing but itself.

    `keys` and `values` are views of what is used; the stock layer copies all of both for every token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, Hkv, L, D]; returns all keys and values."""
        # A graph may still need what room holds; an exported one has no memory that goes on.
        if value_states.requires_grad or _TRACED.get():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", key_states)
        self.values = self._append("values", value_states)
        return self.keys, self.values

    def reset(self) -> None:
        """Forget everything, room included."""
        super().reset()
        self._room = {}

    def _append(self, name: str, states: torch.Tensor) -> torch.Tensor:
        held, room = getattr(self, name), self._room.get(name)
        past = held.shape[-2] if held.dim() == states.dim() else 0
        length = past + states.shape[-2]
        # Cropping leaves a view of the room's beginning; selecting or repeating sequences makes a tensor of its own.
        begins_room = room is not None and held.data_ptr() == room.data_ptr() and held.stride() == room.stride()
        if room is None or length > room.shape[-2] or (past and not begins_room) or not may_write(room):
            share = SHARE_FOR_CHUNKS if past and states.shape[-2] > 1 else SHARE_FOR_TOKENS
            room = states.new_empty(*states.shape[:2], length + max(ROOM, length // share), states.shape[-1])
            room[..., :past, :] = held if past else room[..., :0, :]
            self._room[name] = room
        room[..., past:length, :] = states
        return room[..., :length, :]


class ValueOnlyLayer(GrowingLayer):
    """A growing layer of values [B, Hkv, S, D] with zero-width keys.

    The stock layer reports length 0 for empty keys, and beam search then silently skips reordering.
    """

    def get_seq_length(self) -> int:
        return 0 if self.values is None or self.values.numel() == 0 else self.values.shape[-2]


def _value_only_like(source: Any) -> Any:
    """An empty value-only layer of the same kind (growing, sliding, static) as the source's layer."""
    if type(source) is DynamicLayer:
        return ValueOnlyLayer()
    if type(source) is DynamicSlidingWindowLayer:
        layer = DynamicSlidingWindowLayer(sliding_window=source.sliding_window)
        layer.record_past = source.record_past  # assisted decoding crops, which needs the recorded past
        return layer
    if type(source) is StaticLayer:
        return StaticLayer(max_cache_len=source.max_cache_len)
    if type(source) is StaticSlidingWindowLayer:
        return StaticSlidingWindowLayer(max_cache_len=source.max_cache_len, sliding_window=source.max_cache_len)
    raise NotImplementedError(f"a cache with {type(source).__name__} layers cannot serve a model with a layer plan.")


def _windowed_like(stock: Any) -> WindowLayer:
    """An empty windowed layer in place of a growing or sliding one."""
    if type(stock) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise NotImplementedError(
            f"a cache with {type(stock).__name__} layers cannot serve a plan with windows, whose layers give tokens up."
        )
    return WindowLayer()


def new_cache(config: Any, *, beside_encoder: bool) -> Cache:
    """An empty cache of a decoder's config; of a decoder beside an encoder with another for cross-attention, which
    keeps what it is given once, of the whole source."""
    own = DynamicCache(config=config)
    return EncoderDecoderCache(own, DynamicCache()) if beside_encoder else own


def fit_cache(cache: Any, plan: LayerPlan) -> Any:
    """Make an empty cache hold only what the plan says; a cache already fitted is returned as it is.

    A plan says nothing about the cache of cross-attention.

    Raises:
        NotImplementedError: a kind of cache that stores keys and values in another way.
        ValueError: the cache was filled by, or fitted to, a model with another layer plan.
    """
    if isinstance(cache, EncoderDecoderCache):
        fit_cache(cache.self_attention_cache, plan)
        return cache
    fitted = getattr(cache, "fitted_plan", None)
    if fitted in (plan, TRACED):
        return cache
    if not isinstance(cache, Cache):
        raise NotImplementedError(f"{type(cache).__name__} cannot serve a model with a layer plan.")
    layers: list[Any] = cache.layers
    if fitted is not None or any(int(layer.get_seq_length()) > 0 for layer in layers):
        first = plan.operated[0]
        raise ValueError(
            f"cache layer {first} was filled by a model with another layer plan; start from an empty cache."
        )
    if cache.layer_class_to_replicate is not None:
        missing = len(plan.rows) - len(layers)
        layers.extend(cache.layer_class_to_replicate() for _ in range(missing))
        cache.layer_class_to_replicate = None
    stock = list(layers)
    for row in plan.rows:
        if row.window is not None:
            layers[row.index] = _windowed_like(stock[row.index])
        elif row.caches_keys:
            layers[row.index] = GrowingLayer() if type(stock[row.index]) is DynamicLayer else stock[row.index]
        elif row.caches_values:
            layers[row.index] = _value_only_like(stock[plan.root(row.index)])
        else:
            layers[row.index] = DummyLayer()
    # on the cache itself: callers keep it between forwards, and copy it with all that belongs to it
    vars(cache)["fitted_plan"] = TRACED if _TRACED.get() else plan
    return cache


def map_buffers(cache: Any) -> MapBuffers:
    """The memory for attention maps that goes with a cache, from forward to forward."""
    buffers: MapBuffers = vars(cache).setdefault("map_buffers", MapBuffers())
    return buffers


def kv_cache_bytes(cache: Cache) -> int:
    """Bytes of keys and values that a cache really holds, without the room that growing layers have to spare; those of
    cross-attention too."""
    if isinstance(cache, EncoderDecoderCache):
        return kv_cache_bytes(cache.self_attention_cache) + kv_cache_bytes(cache.cross_attention_cache)
    tensors = (tensor for layer in cache.layers for tensor in (layer.keys, layer.values))  # type: ignore[union-attr]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
