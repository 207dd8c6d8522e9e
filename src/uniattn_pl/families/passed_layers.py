"""A decoder in which one layer is run and the others hand on what they get: not every layer runs without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import decoder_layers, decoder_of, stock_model_type

HANDED_ON: tuple[Callable[..., Any], ...] = (
    lambda hidden, *_, **__: hidden,
    lambda hidden, *_, **__: (hidden,),
    lambda hidden, *_, **__: (hidden, None),
)
"""What a layer does that is passed by; some decoders take the first of what a layer gives, or two."""


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states [B, L, d] in what a decoder layer gives."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@torch.no_grad()
def handed_on_in(model: PreTrainedModel) -> Callable[..., Any]:
    """Of `HANDED_ON`, what this model's decoder takes from its layers.

    Raises:
        UserError: none of them.
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    for handed_on in HANDED_ON:
        # the family's own code: what it does not take shows in whatever it raises, or in what comes out
        with passed_by(decoder_layers(model), handed_on, but=None), suppress(Exception):
            hidden = decoder_of(model)(input_ids=ids, use_cache=False).last_hidden_state
            if hidden.shape[:2] == ids.shape:
                return handed_on
    raise UserError(
        f"the layers of model type '{stock_model_type(model.config)}' hand on hidden states in a form of their own."
    )


@contextmanager
def passed_by(layers: Iterable[nn.Module], handed_on: Callable[..., Any], *, but: nn.Module | None) -> Iterator[None]:
    """Let layers do `handed_on` instead of their own forward, all, or all `but` one."""
    others = [layer for layer in layers if layer is not but]
    for layer in others:
        layer.forward = handed_on
    try:
        yield
    finally:
        for layer in others:
            del layer.forward
