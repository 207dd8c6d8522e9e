"""H2O: exact when nothing goes, the right tokens when some do, the same ones in every layer that reads them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.modeling.test_decoding import GREEDY
from tests.tiny_models import cases, converted, plan_of, shape, stock, tokens
from transformers import DynamicCache, PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.compressed import compressed_response_loss
from uniattn_pl.evaluation.held_out import held_out_metrics
from uniattn_pl.inference.prefill import prefill
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.conversion.convert import unmodified_copy
from uniattn_pl.plan import costs

CLOSE = {"rtol": 0, "atol": 1e-4}
HKV, GROUPS = 2, 2


@cases(modes=False)
def test_a_full_budget_changes_nothing_and_a_smaller_one_keeps_every_layer_to_it(
    family: str, architecture: str
) -> None:
    model, prompt = converted(family, architecture), tokens(2, 12)
    expected = model.generate(prompt, **GREEDY)
    assert torch.equal(model.generate(prompt, past_key_values=H2OCache(model, 1.0), **GREEDY), expected)
    cache = H2OCache(model, 0.5)
    assert model.generate(prompt, past_key_values=cache, **GREEDY).shape == expected.shape
    plan = plan_of(family, architecture)
    for row in plan.rows:
        limited = shape(family).layers[plan.root(row.index)].window is not None
        for name, held in (("keys", row.caches_keys), ("values", row.caches_values)):
            if held and not limited:
                assert getattr(cache.layers[row.index], name).shape[-2] == 6 + 1, "the budget and the last token"
    assert cache.get_seq_length() == 12 + GREEDY["max_new_tokens"] - 1


@pytest.mark.parametrize("architecture", ["uniattn", "cla", "llmdrop", "mixed"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.9])
def test_the_retain_rate_multiplies_the_plans(architecture: str, rate: float) -> None:
    model, length = converted("llama", architecture), 20
    cache = prefill(model, tokens(3, length), past_key_values=H2OCache(model, rate), chunk_size=6).past_key_values
    cache.compress()
    size: dict[str, Any] = {"batch_size": 3, "bytes_per_element": 4}
    plan = plan_of("llama", architecture)
    assert kv_cache_bytes(cache) == costs.kv_cache_bytes(plan, shape("llama"), length=round(rate * length), **size)


@torch.no_grad()
def attention_given(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """By layer, what all queries give to each key [B, Hkv, S], from the stock model's own maps."""
    model.set_attn_implementation("eager")
    maps = model(ids, output_attentions=True, use_cache=False).attentions
    return [m.view(len(ids), HKV, GROUPS, *m.shape[2:]).sum(dim=(2, 3)) for m in maps]


def expected_positions(given: torch.Tensor, budget: int) -> torch.Tensor:
    """The most recent half, and the most attended of the others, ascending."""
    total, recent = given.shape[-1], math.ceil(budget / 2)
    ranked = given[..., : total - recent].argsort(dim=-1, descending=True)[..., : budget - recent]
    last = torch.arange(total - recent, total).expand(*given.shape[:2], -1)
    return torch.cat([ranked, last], dim=-1).sort(dim=-1).values


@pytest.mark.parametrize("chunk_size", [3, 100])
@torch.no_grad()
def test_it_keeps_the_most_attended_and_the_most_recent_and_attends_to_those_only(chunk_size: int) -> None:
    model, ids, length = stock("llama"), tokens(2, 15), 14
    given = attention_given(stock("llama"), ids[:, :length])
    whole = DynamicCache(config=model.config)
    model(ids[:, :length], past_key_values=whole, use_cache=True)
    copied = unmodified_copy(model)
    cache = H2OCache(copied, 0.43)
    prefill(copied, ids[:, :length], past_key_values=cache, chunk_size=chunk_size)
    found = copied(ids[:, length:], past_key_values=cache, use_cache=True).logits
    budget = round(0.43 * length)
    masks = []
    for index, layer in enumerate(cache.layers):
        positions = expected_positions(given[index], budget)
        for name in ("keys", "values"):
            kept = getattr(whole.layers[index], name).gather(2, positions[..., None].expand(-1, -1, -1, 8))
            torch.testing.assert_close(getattr(layer, name)[:, :, :budget], kept, **CLOSE)
        seen = torch.zeros(2, HKV, length + 1, dtype=torch.bool).scatter(2, positions, True)
        seen[..., -1] = True
        masks.append(seen.repeat_interleave(GROUPS, dim=1)[:, :, None, :])
    # The stock model with its whole cache, told by a mask per head not to look at what has gone.
    model.set_attn_implementation("eager")
    for layer, mask in zip(model.model.layers, masks, strict=True):
        hidden = torch.where(mask, 0.0, torch.finfo(torch.float32).min)

        def only_kept(_: Any, args: Any, kwargs: dict[str, Any], hidden: torch.Tensor = hidden) -> Any:
            return args, {**kwargs, "attention_mask": hidden}

        layer.self_attn.register_forward_pre_hook(only_kept, with_kwargs=True)
    expected = model(ids[:, length:], past_key_values=whole, use_cache=True).logits
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("architecture", ["uniattn", "mixed"])
@torch.no_grad()
def test_reuse_layers_evict_what_their_source_does(architecture: str) -> None:
    model, ids = converted("llama", architecture), tokens(2, 14)
    plan = plan_of("llama", architecture)
    whole = prefill(model, ids).past_key_values
    cache = H2OCache(model, 0.5)
    prefill(model, ids, past_key_values=cache, chunk_size=5)
    cache.compress()
    readers = [row for row in plan.rows if row.role == "reuse"]
    assert readers
    for row in readers:
        positions = cache.groups[plan.root(row.index)].positions
        assert positions is not None
        kept = whole.layers[row.index].values.gather(2, positions[..., None].expand(-1, -1, -1, 8))
        torch.testing.assert_close(cache.layers[row.index].values, kept, **CLOSE)


@pytest.mark.parametrize("architecture", ["uniattn", "cla"])
@torch.no_grad()
def test_padding_on_the_left_is_given_up_first_and_never_counts(architecture: str) -> None:
    model, alone, padding = converted("llama", architecture), tokens(1, 10), 4
    padded = torch.cat([torch.zeros(1, padding, dtype=torch.long), alone], dim=1)
    batch = torch.cat([padded, tokens(1, 14, seed=4)])
    mask = torch.ones_like(batch)
    mask[0, :padding] = 0
    single, both = H2OCache(model, 0.7), H2OCache(model, 0.5)  # 7 tokens each
    prefill(model, alone, past_key_values=single, chunk_size=3)
    prefill(model, batch, mask, past_key_values=both, chunk_size=4)
    new = tokens(2, 1, seed=9)
    expected = model(new[:1], past_key_values=single, use_cache=True).logits
    longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    positions = longer.sum(-1, keepdim=True) - 1
    found = model(new, attention_mask=longer, position_ids=positions, past_key_values=both, use_cache=True).logits
    torch.testing.assert_close(found[:1], expected, **CLOSE)
    for root, kept in single.groups.items():
        assert kept.positions is not None
        padded_positions = both.groups[root].positions
        assert padded_positions is not None
        assert torch.equal(padded_positions[:1, :, :7] - padding, kept.positions[:, :, :7])


@pytest.mark.parametrize("chunk_size", [None, 3, 9])
def test_a_last_chunk_of_one_token_is_still_the_prompt(chunk_size: int | None) -> None:
    model, prompt = converted("llama", "uniattn"), tokens(1, 10)
    cache = H2OCache(model, 0.5)
    output = model.generate(prompt, past_key_values=cache, prefill_chunk_size=chunk_size, **GREEDY)
    expected = model.generate(prompt, past_key_values=H2OCache(model, 0.5), prefill_chunk_size=5, **GREEDY)
    assert cache.budget == 5
    assert torch.equal(output, expected)


def test_beams_carry_their_scores() -> None:
    model, prompt = converted("llama", "uniattn"), tokens(2, 10)
    beams = {"num_beams": 3, "do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
    expected = model.generate(prompt, **beams)
    assert torch.equal(model.generate(prompt, past_key_values=H2OCache(model, 1.0), **beams), expected)
    cache = H2OCache(model, 0.6)
    model.generate(prompt, past_key_values=cache, **beams)
    assert all(kept.scores is not None and len(kept.scores) == 6 for kept in cache.groups.values())


@pytest.mark.parametrize("architecture", ["uniattn", "llmdrop"])
def test_scoring_after_compression(architecture: str) -> None:
    model, rows = converted("llama", architecture), []
    for number, (length, start) in enumerate(((14, 8), (9, 8), (12, 3))):
        ids = tokens(1, length, seed=number)
        labels = ids.clone()
        labels[:, :start] = -100
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    ordinary = held_out_metrics(model, rows)
    whole = compressed_response_loss(model, rows, 1.0)
    assert whole.response_loss == pytest.approx(ordinary.response_loss, abs=1e-5)
    assert whole.tokens == ordinary.tokens == 6 + 1 + 9
    half = compressed_response_loss(model, rows, 0.5)
    assert half.kv_bytes_per_token == pytest.approx(0.5 * whole.kv_bytes_per_token, rel=0.1)
    assert abs(half.response_loss - whole.response_loss) > 1e-3
    padded = [{name: torch.nn.functional.pad(tensor, (0, 3)) for name, tensor in row.items()} for row in rows]
    for row in padded:
        row["labels"][:, -3:] = -100
    assert compressed_response_loss(model, padded, 0.5).response_loss == pytest.approx(half.response_loss, abs=1e-5)


def test_what_h2o_cannot_do_is_named() -> None:
    with pytest.raises(UserError, match=r"take unmodified_copy\(model\)"):
        H2OCache(stock("llama"), 0.5)
    model = converted("llama", "uniattn")
    for rate in (0.0, 1.2):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            H2OCache(model, rate)
    with pytest.raises(NotImplementedError, match="cannot take tokens back"):
        model.generate(tokens(1, 12), past_key_values=H2OCache(model, 0.5), prompt_lookup_num_tokens=3, **GREEDY)
    two = {"input_ids": tokens(2, 5), "attention_mask": torch.ones(2, 5), "labels": tokens(2, 5)}
    with pytest.raises(ValueError, match="one sequence"):
        compressed_response_loss(model, [two], 0.5)
