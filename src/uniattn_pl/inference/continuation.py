"""A prompt and what follows it, token by token: one text at a time, over the cache of the model's plan.

Written as iterators, so that many texts can take turns (serving) without one changing a bit of another: every forward
has one text, and what a batch would round differently is the same whatever else is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from uniattn_pl.families.encoder_decoder import last_logits
from uniattn_pl.families.recurrent_states import layers_with_states
from uniattn_pl.inference.prefill import prefill
from uniattn_pl.inference.token_choice import TokenChooser
from uniattn_pl.modeling.length_rotations import rotated_for

PART = 512  # tokens of a prompt in one turn; a card, which is fast and dislikes small pieces, takes PART_ELSEWHERE
PART_ELSEWHERE = 8192
SCORED_PART = 128  # the same where the logits [128, vocabulary] of all of them are wanted


@dataclass(frozen=True)
class TokenScore:
    """A token and how likely the model finds it at its place.

    Attributes:
        id: the token.
        log: its log-probability (nats), whatever it was drawn by; None of a text's first token.
        likeliest: the tokens that are likeliest there, with theirs, as many as were asked for.
    """

    id: int
    log: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class FilledPrompt:
    """A cache that holds a prompt, the logits [vocabulary] of what follows, and its tokens' scores if asked for.

    `beside` is what every further forward is given besides: the states of an encoder that has read the prompt, whose
    decoder holds `ids`.
    """

    ids: Sequence[int]
    cache: Any
    logits: Tensor
    scores: tuple[TokenScore, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)


def scored(logits: Tensor, tokens: Sequence[int], likeliest: int) -> list[TokenScore]:
    """Score tokens [n] by the logits [n, vocabulary] of their places."""
    logs = logits.float().log_softmax(-1)
    chosen = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    top = logs.topk(min(likeliest, logs.shape[-1]), dim=-1)
    places = zip(tokens, chosen, top.indices.tolist(), top.values.tolist(), strict=True)
    return [TokenScore(token, log, tuple(zip(ids, values, strict=True))) for token, log, ids, values in places]


@torch.inference_mode()
def filled_prompt(
    model: PreTrainedModel,
    ids: Sequence[int],
    cache: Any = None,
    *,
    likeliest: int | None = None,
    part: int | None = None,
) -> Generator[None, None, FilledPrompt]:
    """Fill a cache with a prompt, a part in each turn.

    Args:
        ids: the prompt's tokens, one at least.
        cache: an empty one; default: what suits the model and its plan.
        likeliest: score the prompt's tokens, with so many likeliest ones at each place; None: do not.
        part: tokens in one turn; default: what suits the device.
    """
    cache = DynamicCache(config=model.config) if cache is None else cache
    scores = [TokenScore(ids[0])] if likeliest is not None else []
    of_device = PART if model.device.type == "cpu" else PART_ELSEWHERE
    size = part or (of_device if likeliest is None else SCORED_PART)
    if layers_with_states(model.config):
        size = len(ids)
    inputs = torch.tensor([list(ids)], device=model.device)
    for start in range(0, len(ids), size):
        piece = inputs[:, start : start + size]
        with rotated_for(model, len(ids)):
            if likeliest is None:
                logits = prefill(model, piece, past_key_values=cache).logits[0]
            else:
                logits = model(input_ids=piece, past_key_values=cache, use_cache=True).logits[0]
                following = list(ids[start + 1 : start + size + 1])
                scores += scored(logits[: len(following)], following, likeliest)
        yield
    return FilledPrompt(ids, cache, logits[-1], tuple(scores))


def filled_at_once(model: PreTrainedModel, ids: Sequence[int], cache: Any = None) -> FilledPrompt:
    """Fill a cache with a prompt, in one turn. Args as `filled_prompt`."""
    filling = filled_prompt(model, ids, cache, part=len(ids))  # `prefill` chunks it as suits the device
    while True:
        try:
            next(filling)
        except StopIteration as done:
            filled: FilledPrompt = done.value
            return filled


@torch.inference_mode()
def encoded_prompt(model: PreTrainedModel, ids: Sequence[int], begins: Sequence[int]) -> FilledPrompt:
    """Let an encoder read a prompt, and its decoder what every response begins with.

    Args:
        ids: the prompt's tokens, one at least.
        begins: of `data.prompt_ids.decoder_begins`.
    """
    source, given = (torch.tensor([list(tokens)], device=model.device) for tokens in (ids, begins))
    read = model.get_encoder()(input_ids=source, attention_mask=torch.ones_like(source))
    beside = {"encoder_outputs": read, "attention_mask": torch.ones_like(source)}
    output = model(decoder_input_ids=given, use_cache=True, **beside)
    return FilledPrompt(begins, output.past_key_values, output.logits[0, -1], beside=beside)


@torch.inference_mode()
def continuation(
    model: PreTrainedModel,
    prompt: FilledPrompt,
    chooser: TokenChooser,
    *,
    ends: frozenset[int],
    max_new_tokens: int,
    likeliest: int | None = None,
    step: Callable[..., Any] | None = None,
) -> Iterator[TokenScore]:
    """Yield the tokens that follow a prompt, the one that ends the text too; the prompt's cache grows by them.

    Args:
        ends: tokens that end a text.
        likeliest: score each token, with so many likeliest ones beside it; None: do not.
        step: the model's forward of one token, where it is a compiled one.
    """
    forward: Any = model if step is None else step
    prepare: Any = model.prepare_inputs_for_generation
    text = torch.tensor([list(prompt.ids)], device=model.device)
    cache, logits = prompt.cache, prompt.logits
    for number in range(1, max_new_tokens + 1):
        token = chooser.choose(logits)
        yield TokenScore(token) if likeliest is None else scored(logits[None], [token], likeliest)[0]
        if token in ends or number == max_new_tokens:
            return
        text = torch.cat([text, text.new_tensor([[token]])], dim=1)
        # By the family's own preparation: Phi-3 starts over with another cache where its rotation changes.
        prepared = prepare(text, next_sequence_length=1, past_key_values=cache, use_cache=True, **prompt.beside)
        output = forward(**{**prepared, **last_logits(model)})
        cache, logits = output.past_key_values, output.logits[0, -1]
