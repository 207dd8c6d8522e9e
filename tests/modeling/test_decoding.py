"""Every way of decoding gives the tokens of plain forwards without a cache: families x architectures x modes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from tests.tiny_models import cases, converted, stock, tokens
from transformers import DynamicCache, PreTrainedModel

NEW_TOKENS, MORE_TOKENS = 4, 5
PROMPT = tokens(1, 9)
# Repeated, so that prompt-lookup decoding finds something to propose.
PROMPT[:, 6:] = PROMPT[:, 2:5]
PADDING = 4
GREEDY = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
CLEAR_MARGIN = 1e-4


@torch.no_grad()
def uncached_greedy(model: PreTrainedModel, ids: torch.Tensor, count: int = NEW_TOKENS) -> torch.Tensor:
    """The reference: whole forwards; refuses a model whose choice hangs on rounding."""
    for _ in range(count):
        logits = model(ids, use_cache=False).logits[:, -1]
        best = logits.topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > CLEAR_MARGIN, "a near tie: give this case another seed"
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


@lru_cache
def stock_greedy(family: str) -> torch.Tensor:
    return uncached_greedy(stock(family), PROMPT, MORE_TOKENS)


def _generate(**options: Any) -> Callable[[PreTrainedModel], torch.Tensor]:
    return lambda model: model.generate(PROMPT, **GREEDY | options)


def _after_a_forward(model: PreTrainedModel) -> torch.Tensor:
    """A cache that a forward has filled with a prefix."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(PROMPT[:, :-2], past_key_values=cache, use_cache=True)
    return model.generate(PROMPT, past_key_values=cache, **GREEDY)


def _after_another_generate(model: PreTrainedModel) -> torch.Tensor:
    """A cache that generate() has filled, as in a conversation."""
    half = GREEDY | {"max_new_tokens": NEW_TOKENS // 2}
    first = model.generate(PROMPT, return_dict_in_generate=True, **half)
    mask = torch.ones_like(first.sequences)  # a generated token 0 is no padding
    return model.generate(first.sequences, attention_mask=mask, past_key_values=first.past_key_values, **half)


def _left_padded(model: PreTrainedModel) -> torch.Tensor:
    """The prompt, padded, in a batch with a longer one."""
    padded = torch.cat([torch.zeros(1, PADDING, dtype=torch.long), PROMPT], dim=1)
    batch = torch.cat([tokens(1, padded.shape[1], seed=5), padded])
    mask = torch.ones_like(batch)
    mask[1, :PADDING] = 0
    return model.generate(batch, attention_mask=mask, **GREEDY)[1:, PADDING:]


GREEDY_WAYS: dict[str, Callable[[PreTrainedModel], torch.Tensor]] = {
    "greedy": _generate(),
    "without a cache": _generate(use_cache=False),
    "static cache": _generate(cache_implementation="static"),
    "chunked prefill": _generate(prefill_chunk_size=4),
    "chunked prefill into a static cache": _generate(prefill_chunk_size=4, cache_implementation="static"),
    "prompt lookup": _generate(prompt_lookup_num_tokens=3),
    "prefix from a forward": _after_a_forward,
    "prefix from another generate": _after_another_generate,
    "left-padded batch": _left_padded,
}
"""Ways that must give the greedy tokens."""

BATCH = torch.cat([PROMPT, tokens(1, PROMPT.shape[1], seed=5)])
BATCH_MASK = torch.ones_like(BATCH)
BATCH_MASK[1, :3] = 0
OTHER_WAYS: dict[str, dict[str, Any]] = {
    "beam search": {"num_beams": 3, "do_sample": False, "max_new_tokens": MORE_TOKENS},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.5, "max_new_tokens": MORE_TOKENS},
}
"""Ways with tokens of their own, compared with themselves without a cache, on a left-padded batch."""


def _seeded(model: PreTrainedModel, *, use_cache: bool, **options: Any) -> torch.Tensor:
    torch.manual_seed(3)
    return model.generate(BATCH, attention_mask=BATCH_MASK, pad_token_id=0, use_cache=use_cache, **options)


Way = tuple[Callable[[PreTrainedModel], torch.Tensor], torch.Tensor]


def wrong_ways(model: PreTrainedModel, ways: dict[str, Way]) -> list[str]:
    """Names of the ways that do not give what is expected of them, with the exception where they raise one."""
    wrong = []
    for name, (way, expected) in ways.items():
        try:
            if not torch.equal(way(model), expected):
                wrong.append(name)
        except Exception as error:
            wrong.append(f"{name} ({type(error).__name__}: {error})")
    return wrong


@cases(modes=True)
def test_every_greedy_way_gives_the_tokens_of_the_uncached_model(family: str, architecture: str, mode: str) -> None:
    model = converted(family, architecture, mode)
    expected = uncached_greedy(model, PROMPT)
    assert wrong_ways(model, {name: (way, expected) for name, way in GREEDY_WAYS.items()}) == []


@cases(modes=False)
def test_beams_samples_and_assistants_give_the_tokens_of_the_uncached_model(family: str, architecture: str) -> None:
    """In the default mode: prompts replay the map, single tokens keep it."""
    model, original = converted(family, architecture), stock(family)
    assisted = _generate(assistant_model=original, max_new_tokens=MORE_TOKENS)
    assisting = _generate(assistant_model=model, max_new_tokens=MORE_TOKENS)
    ways: dict[str, Way] = {
        "assisted by the stock model": (assisted, uncached_greedy(model, PROMPT, MORE_TOKENS)),
        "assistant of the stock model": (lambda _: assisting(original), stock_greedy(family)),
    }
    for name, options in OTHER_WAYS.items():
        ways[name] = (partial(_seeded, use_cache=True, **options), _seeded(model, use_cache=False, **options))
    assert wrong_ways(model, ways) == []
