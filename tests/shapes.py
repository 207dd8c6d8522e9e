"""A hand-countable model shape for tests of plans and costs."""

from __future__ import annotations

from collections.abc import Sequence

from uniattn_pl.plan import Heads, LayerShape, ModelShape


def toy_shape(num_layers: int, windows: Sequence[int | None] | None = None) -> ModelShape:
    """Hidden 8, 4 heads over 2 KV heads of size 2 feed-forward 24 weights per hidden unit."""
    windows = windows or (None,) * num_layers
    sizes = {"query": 64, "key": 32, "value": 32, "output": 64, "attention_norms": 8, "feed_forward": 192, "other": 8}
    layers = tuple(LayerShape(Heads(4, 2, 2, 2), **sizes, window=window) for window in windows)
    return ModelShape("toy", 8, vocab_size=50, embedding=408, layers=layers)
