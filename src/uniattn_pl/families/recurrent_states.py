"""What recurrences and convolutions of a hybrid keep of a sequence, found by running each without weights."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import decoder_layers, decoder_of
from uniattn_pl.families.passed_layers import HANDED_ON, passed_by

NARROW = torch.bfloat16
READ_WHOLE = "a model whose layers carry a state (recurrences, convolutions) reads a prompt whole, as one chunk."


def recurrent_states(model: PreTrainedModel) -> dict[int, tuple[int, int]]:
    """Layer -> numbers that it keeps of a sequence in the model's dtype, and in float32 whatever that is.

    Args:
        model: without weights; its dtype becomes `NARROW`.

    Raises:
        UserError: a layer's states cannot be seen.
    """
    with_states = layers_with_states(model.config)
    if not with_states:
        return {}
    nn.Module.to(model, NARROW)
    return {index: _of_layer(model, index) for index in with_states}


def layers_with_states(config: PreTrainedConfig) -> list[int]:
    """The layers that keep a state of a sequence, by itself (Bamba) or beside keys and values (Falcon-H1).

    Some families' own code goes on from a state by one token only and, given several, begins anew without a word
    (Bamba, Jamba): a prompt is read whole.
    """
    layers = DynamicCache(config=config).layers
    return [index for index, layer in enumerate(layers) if isinstance(layer, LinearAttentionCacheLayerMixin)]


def _of_layer(model: PreTrainedModel, index: int) -> tuple[int, int]:
    layers = decoder_layers(model)
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    # some masks are made by looking at the values of the one that is given, others by looking at positions without one
    for handed_on, masks in product(HANDED_ON, ({}, {"attention_mask": torch.ones_like(ids)})):
        cache = DynamicCache(config=model.config)
        layer: Any = cache.layers[index]
        with passed_by(layers, handed_on, but=layers[index]), suppress(Exception):
            # the family's own code: whatever ends it, the states may have been seen
            decoder_of(model)(input_ids=ids, past_key_values=cache, use_cache=True, **masks)
        states = [*layer.conv_states.values(), *layer.recurrent_states.values()]
        seen = [state for state in states if isinstance(state, torch.Tensor)]
        if seen:
            narrow = sum(state.numel() for state in seen if state.dtype == NARROW)
            return narrow, sum(state.numel() for state in seen if state.dtype != NARROW)
    raise UserError(f"layer {index} keeps a state of a size that cannot be seen, of unknown cost.")
