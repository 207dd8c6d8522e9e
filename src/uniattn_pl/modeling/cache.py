"""The cache under a plan: K and V for full layers, V alone for reuse layers, nothing for the others."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from uniattn_pl.plan import LayerPlan


class ValueOnlyLayer(DynamicLayer):
    """A growing layer of values [B, Hkv, S, D] with zero-width keys.

    The stock layer reports length 0 for empty keys, and beam search then silently skips reordering.
    """

    def get_seq_length(self) -> int:
        return 0 if self.values is None or self.values.numel() == 0 else self.values.shape[-2]


def _value_only_like(source: Any) -> Any:
    """An empty value-only layer of the same kind (growing, sliding, static) as the source's layer."""
    if type(source) in (DynamicLayer, ValueOnlyLayer):
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


def fit_cache(cache: Any, plan: LayerPlan) -> Any:
    """Make an empty cache hold only what the plan says; a cache already fitted is returned as it is.

    Raises:
        NotImplementedError: a kind of cache that stores keys and values in another way.
        ValueError: the cache was filled by, or fitted to, a model with another layer plan.
    """
    fitted = getattr(cache, "fitted_plan", None)
    if fitted == plan:
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
        if not row.operated:
            continue
        if row.source is not None and row.caches_values:
            layers[row.index] = _value_only_like(stock[plan.root(row.index)])
        else:
            layers[row.index] = DummyLayer()
    vars(cache)["fitted_plan"] = plan
    return cache


def kv_cache_bytes(cache: Cache) -> int:
    """Bytes of keys and values that a cache really holds."""
    tensors = (tensor for layer in cache.layers for tensor in (layer.keys, layer.values))  # type: ignore[union-attr]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
