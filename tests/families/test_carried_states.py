"""Prompts of models whose layers carry a state: read whole, since some families' code goes on by one token only."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from tests.tiny_models import shape, stock, tokens
from transformers import DynamicCache, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.compressed import compressed_response_loss
from uniattn_pl.evaluation.likelihood import continuation_likelihoods
from uniattn_pl.inference.continuation import FilledPrompt, filled_prompt
from uniattn_pl.inference.prefill import prefill, read_on
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

HYBRIDS = ("bamba", "jamba", "qwen3_next", "lfm2")
CLOSE = {"rtol": 0, "atol": 1e-4}
IDS = tokens(1, 20)


def reusing(family: str) -> PreTrainedModel:
    """A tiny model in which one layer uses the map of another."""
    attending = shape(family).attention_layers
    return apply_plan(
        stock(family), LayerPlan.stock(shape(family)).reuse([attending[2]], attending[1], compensated=False)
    )


def ended(turns: Generator[None, None, FilledPrompt]) -> FilledPrompt:
    while True:
        try:
            next(turns)
        except StopIteration as done:
            filled: FilledPrompt = done.value
            return filled


@torch.no_grad()
def test_why_a_stock_model_given_several_tokens_after_a_state_begins_anew() -> None:
    """Without this the rest of this file would be for nothing."""
    model, cache = stock("bamba"), DynamicCache(config=stock("bamba").config)
    parts = [model(part, past_key_values=cache).logits for part in IDS.split(10, dim=1)]
    assert (parts[1] - model(IDS).logits[:, 10:]).abs().max() > 1e-2


@pytest.mark.parametrize("family", HYBRIDS)
@torch.no_grad()
def test_whatever_reads_a_prompt_gives_what_one_forward_gives(family: str) -> None:
    model, split = reusing(family), 13
    whole = model(IDS, use_cache=False).logits
    filled = prefill(model, IDS[:, :split])
    torch.testing.assert_close(filled.logits, whole[:, split - 1 : split], **CLOSE)
    torch.testing.assert_close(read_on(model, IDS[:, split:], filled.past_key_values), whole[:, split:], **CLOSE)
    again = prefill(model, IDS[:, :split]).past_key_values
    torch.testing.assert_close(prefill(model, IDS[:, split:], past_key_values=again).logits, whole[:, -1:], **CLOSE)
    for likeliest in (None, 1):
        prompt = ended(filled_prompt(model, IDS[0].tolist(), likeliest=likeliest, part=4))
        torch.testing.assert_close(prompt.logits, whole[0, -1], **CLOSE)
    logs = whole[0, split - 1 : -1].log_softmax(-1).gather(1, IDS[0, split:, None])
    (found,) = continuation_likelihoods(model, IDS[0, :split].tolist(), [IDS[0, split:].tolist()])
    assert found.log == pytest.approx(float(logs.sum()), abs=1e-3)


@pytest.mark.parametrize("family", HYBRIDS)
def test_chunks_that_are_asked_for_are_refused(family: str) -> None:
    model, settings = reusing(family), {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    with pytest.raises(UserError, match=r"chunk_size is 4; a model whose layers carry a state .* reads a prompt whole"):
        prefill(model, IDS, chunk_size=4)
    with pytest.raises(UserError, match=r"prefill_chunk_size is 4; a model whose layers carry a state"):
        model.generate(IDS, prefill_chunk_size=4, **settings)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe_lite"])
def test_h2o_leaves_latents_alone(family: str) -> None:
    with pytest.raises(UserError, match="a latent attention caches one latent for all heads"):
        H2OCache(reusing(family), 0.5)


def test_h2o_says_where_no_layer_gives_tokens_up() -> None:
    with pytest.raises(UserError, match="no layer of this model could give tokens up"):
        H2OCache(reusing("falcon_h1"), 0.5)


@torch.no_grad()
def test_h2o_of_a_hybrid_keeps_its_budget_and_at_a_full_one_changes_nothing() -> None:
    model, attending = reusing("qwen3_next"), shape("qwen3_next").attention_layers
    rows: list[dict[str, Any]] = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS.clone()}]
    rows[0]["labels"][:, :12] = -100
    logits = model(IDS, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[0, 11:-1], IDS[0, 12:])
    assert compressed_response_loss(model, rows, 1.0).response_loss == pytest.approx(float(loss), abs=1e-4)
    cache = prefill(model, IDS[:, :12], past_key_values=H2OCache(model, 0.5)).past_key_values
    cache.compress()
    assert {cache.layers[index].values.shape[-2] for index in attending} == {6}
