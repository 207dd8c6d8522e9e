"""What recurrences and convolutions of a hybrid keep of a sequence, found by running each without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import decoder_layers

NARROW = torch.bfloat16
HANDED_ON: tuple[Callable[..., Any], ...] = (lambda hidden, *_, **__: hidden, lambda hidden, *_, **__: (hidden,))
"""What a layer does that is passed by; some decoders take the first of what a layer gives."""


def recurrent_states(model: PreTrainedModel) -> dict[int, tuple[int, int]]:
    """Layer -> numbers that it keeps of a sequence in the model's dtype, and in float32 whatever that is.

    Args:
        model: without weights; its dtype becomes `NARROW`.

    Raises:
        UserError: a layer's states cannot be seen.
    """
    with_states = [
        index
        for index, layer in enumerate(DynamicCache(config=model.config).layers)
        if isinstance(layer, LinearAttentionCacheLayerMixin)
    ]
    if not with_states:
        return {}
    nn.Module.to(model, NARROW)
    return {index: _of_layer(model, index) for index in with_states}


def _of_layer(model: PreTrainedModel, index: int) -> tuple[int, int]:
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    # some masks are made by looking at the values of the one that is given, others by looking at positions without one
    for handed_on, masks in product(HANDED_ON, ({}, {"attention_mask": torch.ones_like(ids)})):
        cache = DynamicCache(config=model.config)
        layer: Any = cache.layers[index]
        with passed_by(decoder_layers(model), handed_on, but=index), suppress(Exception):
            # the family's own code: whatever ends it, the states may have been seen
            model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True, **masks)
        states = [*layer.conv_states.values(), *layer.recurrent_states.values()]
        seen = [state for state in states if isinstance(state, torch.Tensor)]
        if seen:
            narrow = sum(state.numel() for state in seen if state.dtype == NARROW)
            return narrow, sum(state.numel() for state in seen if state.dtype != NARROW)
    raise UserError(f"layer {index} keeps a state of a size that cannot be seen, of unknown cost.")


@contextmanager
def passed_by(layers: nn.ModuleList, handed_on: Callable[..., Any], *, but: int) -> Iterator[None]:
    """Let layers do nothing but hand on what they get, all `but` one: not every layer runs without weights."""
    others = [layer for index, layer in enumerate(layers) if index != but]
    for layer in others:
        layer.forward = handed_on
    try:
        yield
    finally:
        for layer in others:
            del layer.forward
