"""A hand-countable model shape for tests of plans and costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from uniattn_pl.plan import Heads, LayerShape, ModelShape
from uniattn_pl.plan.shape import NO_HEADS


def toy_shape(num_layers: int, windows: Sequence[int | None] | None = None) -> ModelShape:
    """Hidden 8, 4 heads over 2 KV heads of size 2 feed-forward 24 weights per hidden unit."""
    windows = windows or (None,) * num_layers
    sizes = {"query": 64, "key": 32, "value": 32, "output": 64, "attention_norms": 8, "feed_forward": 192, "other": 8}
    layers = tuple(LayerShape(Heads(4, 2, 2, 2), **sizes, window=window) for window in windows)
    return ModelShape("toy", 8, vocab_size=50, embedding=408, layers=layers)


def hybrid_shape(attending: Collection[int], num_layers: int = 8) -> ModelShape:
    """The same with layers without attention, but those named."""
    shape = toy_shape(num_layers)
    recurrent = LayerShape(NO_HEADS, query=0, key=0, value=0, output=0, feed_forward=192, other=200, state=40)
    layers = (layer if index in attending else recurrent for index, layer in enumerate(shape.layers))
    return replace(shape, layers=tuple(layers))
