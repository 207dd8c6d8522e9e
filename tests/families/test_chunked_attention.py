"""Llama-4: layers that attend in chunks, beside layers that rotate nothing and scale queries by what came before."""

from __future__ import annotations

import pytest
import torch
from benchmarks.exchanged_kernel import exchanged
from tests.tiny_models import UNMODIFIED, WINDOW, stock, tokens
from transformers import DynamicCache

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import decoder_of
from uniattn_pl.modeling.conversion.convert import apply_plan

FAMILY, BATCH, LENGTH, NEW_TOKENS = "llama4_text", 2, 5 * WINDOW, 4
IDS = tokens(BATCH, LENGTH)
STEPS = (13, 1, 9, 1, 6)  # across the ends of chunks, and of the steps in which queries are scaled
PLANS = {
    "keys of a layer that scales its queries": UNMODIFIED.share_kv([5], 0, compensated=False),
    "map of one that scales them": UNMODIFIED.reuse([5], 0, compensated=False),
    "map of one that sees everything, in a chunked one": UNMODIFIED.reuse([1, 2], 0, compensated=False),
}


@pytest.mark.parametrize("name", PLANS)
@torch.no_grad()
def test_texts_of_several_chunks_are_the_references_whole_in_steps_and_generated(name: str) -> None:
    model, reference = apply_plan(stock(FAMILY), PLANS[name]), stock(FAMILY)
    with exchanged(reference, PLANS[name]):
        expected = reference(IDS, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    steps = [model(part, past_key_values=cache).logits for part in IDS.split(STEPS, 1)]
    for found in (model(IDS, use_cache=False).logits, torch.cat(steps, 1)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-5)
    greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    uncached = model.generate(IDS, **greedy, use_cache=False)
    assert torch.equal(uncached, model.generate(IDS, **greedy, prefill_chunk_size=WINDOW + 1))
    assert torch.equal(uncached, model.generate(IDS, **greedy, cache_implementation="static", disable_compile=True))


def test_what_turns_its_queries_reads_no_keys_of_what_does_not() -> None:
    with pytest.raises(UserError, match="only one of the two turns queries and keys"):
        apply_plan(stock(FAMILY), UNMODIFIED.share_kv([1], 0, compensated=False))
    with pytest.raises(UserError, match=f"layer 5 sees every token but its source, layer 4, only the last {WINDOW}"):
        apply_plan(stock(FAMILY), UNMODIFIED.reuse([5], 4, compensated=False))


def test_the_decoder_is_inside_what_the_family_gives_for_it() -> None:
    model = stock(FAMILY)
    assert model.get_decoder() is model
    assert decoder_of(model) is model.model
