"""How likely a model finds continuations of one prompt, whose cache may be compressed first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.inference.prefill import prefill, read_on
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.length_rotations import rotated_for, rotation_of


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

    (Once for every rotation, where that depends on the length of prompt and continuation.)

    The prompt's last token runs with the continuation, so that also an answer of one token is read from the
    compressed cache.

    Args:
        model: converted, or `unmodified_copy` of a stock one; without `retain_rate` any.
        prompt: token ids, one at least.
        continuations: token ids, one at least each.
        retain_rate: fraction of the prompt's tokens that H2O keeps; None: the ordinary cache.
    """
    lengths = [len(prompt) + len(continuation) for continuation in continuations]
    scores: dict[int, Likelihood] = {}
    # One prefill for all, or for those of one rotation where that depends on the length of the whole text.
    for rotation in dict.fromkeys(rotation_of(model, length) for length in lengths):
        alike = [index for index, length in enumerate(lengths) if rotation_of(model, length) == rotation]
        with rotated_for(model, max(lengths[index] for index in alike)):
            cache = _filled_cache(model, prompt, retain_rate)
            for index in alike:
                scores[index] = _likelihood(model, copy.deepcopy(cache), prompt[-1], continuations[index])
    return [scores[index] for index in range(len(continuations))]


def _filled_cache(model: PreTrainedModel, prompt: Sequence[int], retain_rate: float | None) -> Any:
    """The cache of all but a prompt's last token; None of a single one."""
    if len(prompt) == 1:
        return None
    cache = None if retain_rate is None else H2OCache(model, retain_rate)
    filled = prefill(model, torch.tensor([prompt[:-1]], device=model.device), past_key_values=cache).past_key_values
    if isinstance(filled, H2OCache):
        filled.compress()
    return filled


def _likelihood(model: PreTrainedModel, cache: Any, last: int, continuation: Sequence[int]) -> Likelihood:
    inputs = torch.tensor([[last, *continuation[:-1]]], device=model.device)
    logits = read_on(model, inputs, cache)[0].float()
    targets = torch.tensor(list(continuation), device=logits.device)
    scores = logits.log_softmax(-1).gather(1, targets[:, None])
    return Likelihood(float(scores.sum()), bool((logits.argmax(-1) == targets).all()))
