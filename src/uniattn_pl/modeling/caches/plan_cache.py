"""The cache under a plan: K and V for full layers, V alone for reuse layers, nothing for the others."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import (
    BaseQuantizedLayer,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from uniattn_pl.kernels.map_memory import MapBuffers
from uniattn_pl.modeling.caches.following_layer import follow
from uniattn_pl.modeling.caches.growing_layer import TRACED, GrowingLayer, traced
from uniattn_pl.modeling.caches.quantized_layers import quantized_bytes, value_only_quantized
from uniattn_pl.modeling.caches.value_only_layers import (
    ValueOnlyHybridLayer,
    ValueOnlyLayer,
    ValueOnlySlidingLayer,
    ValueOnlySourceLayer,
    ValueOnlyStaticLayer,
    ValueOnlyStaticSlidingLayer,
)
from uniattn_pl.modeling.caches.window_layer import WindowHybridLayer, WindowLayer
from uniattn_pl.plan import LayerPlan


class CacheMismatchError(RuntimeError):
    """The KV cache of the converted model does not hold the bytes its plan predicts: a defect, not user input."""


def _value_only_like(source: Any, *, latent: bool) -> Any:
    """An empty layer of values alone of the same kind (growing, sliding, static, quantised) as the source's layer."""
    layer: Any
    if type(source) is DynamicLayer:
        layer = ValueOnlyLayer()
    elif type(source) is DynamicSlidingWindowLayer:
        layer = ValueOnlySlidingLayer(sliding_window=source.sliding_window)
        layer.record_past = source.record_past  # assisted decoding crops, which needs the recorded past
    elif type(source) is StaticLayer:
        layer = ValueOnlyStaticLayer(max_cache_len=source.max_cache_len)
    elif type(source) is StaticSlidingWindowLayer:
        size = source.max_cache_len
        layer = ValueOnlyStaticSlidingLayer(max_cache_len=size, sliding_window=size)
    elif type(source) is LinearAttentionAndFullAttentionLayer:
        layer = ValueOnlyHybridLayer(number_of_states=source.number_of_states)
    elif isinstance(source, BaseQuantizedLayer):
        layer = value_only_quantized(source)
    else:
        raise NotImplementedError(
            f"a cache with {type(source).__name__} layers cannot serve a model with a layer plan."
        )
    layer.keeps_first = latent
    return layer


def _without_tokens(stock: Any) -> Any:
    """An empty layer for an attention that caches nothing; the states of a recurrence beside it stay."""
    if isinstance(stock, LinearAttentionAndFullAttentionLayer):
        return LinearAttentionLayer(number_of_states=stock.number_of_states)
    return DummyLayer()


def _windowed_like(stock: Any) -> WindowLayer:
    """An empty windowed layer in place of a growing or sliding one; the states of a recurrence beside it stay."""
    if type(stock) is LinearAttentionAndFullAttentionLayer:
        return WindowHybridLayer(number_of_states=stock.number_of_states)
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


def fit_cache(cache: Any, plan: LayerPlan, *, latent: bool = False) -> Any:
    """Make an empty cache hold only what the plan says; a cache already fitted is returned as it is.

    The cache of cross-attention holds keys and values, but of layers that use another's map there.

    Args:
        latent: the model caches a latent in place of keys and values.

    Raises:
        NotImplementedError: a kind of cache that stores keys and values in another way.
        ValueError: the cache was filled by, or fitted to, a model with another layer plan.
    """
    if isinstance(cache, EncoderDecoderCache):
        _fit_cross_cache(cache.cross_attention_cache, plan)
        follow(fit_cache(cache.self_attention_cache, plan, latent=latent).layers)
        return cache
    fitted = getattr(cache, "fitted_plan", None)
    if fitted in (plan, TRACED):
        return cache
    if not isinstance(cache, Cache):
        raise NotImplementedError(f"{type(cache).__name__} cannot serve a model with a layer plan.")
    layers: list[Any] = cache.layers
    if fitted is not None or any(_is_filled(layer) for layer in layers):
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
            layers[row.index] = _value_only_like(stock[plan.root(row.index)], latent=latent)
        elif row.operated:
            layers[row.index] = _without_tokens(stock[row.index])
    # on the cache itself: callers keep it between forwards, and copy it with all that belongs to it
    vars(cache)["fitted_plan"] = TRACED if traced() else plan
    return cache


def _fit_cross_cache(cache: Cache, plan: LayerPlan) -> None:
    """Let the layers of a cache of cross-attention that use another's map hold the values of the source alone."""
    if vars(cache).get("fitted_plan") == plan or not any(row.cross_map for row in plan.rows):
        return
    layers: list[Any] = cache.layers
    if cache.layer_class_to_replicate is not None:
        kind = cache.layer_class_to_replicate  # which the cache still makes for layers that do not attend here
        layers.extend(kind() for _ in range(len(plan.rows) - len(layers)))
    for row in plan.rows:
        if row.cross_map:
            if _is_filled(layers[row.index]):
                raise ValueError(f"cross-attention's cache layer {row.index} was filled by a model with another plan.")
            fixed = type(layers[row.index]) is StaticLayer
            layers[row.index] = _value_only_like(layers[row.index], latent=False) if fixed else ValueOnlySourceLayer()
    vars(cache)["fitted_plan"] = plan


def _is_filled(layer: Any) -> bool:
    if isinstance(layer, LinearAttentionCacheLayerMixin) and any(layer.has_previous_state.values()):
        return True
    return isinstance(layer, CacheLayerMixin) and int(layer.get_seq_length()) > 0


def map_buffers(cache: Any) -> MapBuffers:
    """The memory for attention maps that goes with a cache, from forward to forward."""
    buffers: MapBuffers = vars(cache).setdefault("map_buffers", MapBuffers())
    return buffers


def kv_cache_bytes(cache: Cache) -> int:
    """Bytes of keys and values that a cache really holds, without the room that growing layers have to spare; of
    quantised ones with their scales; those of cross-attention too, those of recurrences, which hold no tokens, not.

    Args:
        cache: as `past_key_values` of an output, of any kind that transformers has.

    Example:
        output = model(input_ids, use_cache=True)
        print(uniattn_pl.kv_cache_bytes(output.past_key_values))
    """
    if isinstance(cache, EncoderDecoderCache):
        return kv_cache_bytes(cache.self_attention_cache) + kv_cache_bytes(cache.cross_attention_cache)
    return sum(_layer_bytes(layer) for layer in cache.layers)


def _layer_bytes(layer: Any) -> int:
    if isinstance(layer, BaseQuantizedLayer):
        return quantized_bytes(layer) if layer.is_initialized else 0
    tensors = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
