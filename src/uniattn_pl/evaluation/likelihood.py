"""How likely a model finds continuations of one prompt, whose cache may be compressed first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.inference.prefill import prefill
from uniattn_pl.modeling.caches.h2o_cache import H2OCache


@dataclass(frozen=True)
class Likelihood:
    """Log-probability of a continuation (nats, summed), and whether greedy decoding gives exactly it."""

    log: float
    greedy: bool


@torch.no_grad()
def continuation_likelihoods(
    model: PreTrainedModel,
    prompt: Sequence[int],
    continuations: Sequence[Sequence[int]],
    *,
    retain_rate: float | None = None,
) -> list[Likelihood]:
    """Score continuations; the prompt runs once, in chunks, and its logits are never all in memory.

    The prompt's last token runs with the continuation, so that also an answer of one token is read from the
    compressed cache.

    Args:
        model: converted, or `unmodified_copy` of a stock one; without `retain_rate` any.
        prompt: token ids, one at least.
        continuations: token ids, one at least each.
        retain_rate: fraction of the prompt's tokens that H2O keeps; None: the ordinary cache.
    """
    cache: Any = None
    if len(prompt) > 1:
        cache = None if retain_rate is None else H2OCache(model, retain_rate)
        cache = prefill(model, torch.tensor([prompt[:-1]], device=model.device), past_key_values=cache).past_key_values
        if isinstance(cache, H2OCache):
            cache.compress()
    return [_likelihood(model, copy.deepcopy(cache), prompt[-1], continuation) for continuation in continuations]


def _likelihood(model: PreTrainedModel, cache: Any, last: int, continuation: Sequence[int]) -> Likelihood:
    inputs = torch.tensor([[last, *continuation[:-1]]], device=model.device)
    logits = model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[0].float()
    targets = torch.tensor(list(continuation), device=logits.device)
    scores = logits.log_softmax(-1).gather(1, targets[:, None])
    return Likelihood(float(scores.sum()), bool((logits.argmax(-1) == targets).all()))
