"""Role `window`: the last tokens and the first few, with a cache that holds no others, exactly as without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import DISTINCT, EAGER_ONLY, UNMODIFIED, stock, tokens, with_random_compensations
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

import uniattn_pl
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan, costs

WINDOW, SINKS, LENGTH = 4, 2, 14
FULL_ATTENTION = ["llama", "qwen2", "qwen3", "olmo2"]


def plan_for(family: str) -> LayerPlan:
    """Layers 1 to 3 and 5; those that slide already have no sinks."""
    plan, shape = UNMODIFIED, shape_of(stock(family).config)
    for layer in (1, 2, 3, 5):
        sinks = SINKS if shape.layers[layer].window is None else 0
        plan = plan.limit_window([layer], WINDOW, sinks, compensated=layer != 3)
    return plan


def converted(family: str, plan: LayerPlan | None = None) -> PreTrainedModel:
    return with_random_compensations(apply_plan(stock(family), plan or plan_for(family)))


def seen_by_hand(real: list[bool], query: int, window: int, sinks: int) -> list[int]:
    """The tokens that a query sees, of a text some of whose tokens are padding."""
    before = [token for token in range(query + 1) if real[token]]
    return sorted({*before[:sinks], *before[len(before) - window :]}) if len(before) > window else before


@torch.no_grad()
def by_hand(family: str, plan: LayerPlan, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The logits of a stock model with plain attention whose masks are written token by token."""
    model = stock(family)
    model.set_attn_implementation("eager")
    for row in plan.rows:
        if row.window is None:
            continue
        mask = torch.full((len(ids), 1, ids.shape[1], ids.shape[1]), torch.finfo(torch.float32).min)
        for sequence, real in enumerate(attention_mask.bool().tolist()):
            for query in range(ids.shape[1]):
                mask[sequence, 0, query, seen_by_hand(real, query, row.window, row.sinks)] = 0

        def give(_: Any, args: Any, kwargs: dict[str, Any], mask: torch.Tensor = mask) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        model.model.layers[row.index].self_attn.register_forward_pre_hook(give, with_kwargs=True)
    return model(ids, attention_mask=attention_mask).logits


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts of different length, and their mask."""
    ids, mask = tokens(3, LENGTH), torch.ones(3, LENGTH, dtype=torch.long)
    for row, missing in ((1, 3), (2, 7)):
        mask[row, slice(missing) if side == "left" else slice(LENGTH - missing, None)] = 0
    return ids * mask, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", DISTINCT)
@torch.no_grad()
def test_it_computes_what_plain_attention_under_a_mask_by_hand_computes(family: str, side: str) -> None:
    ids, mask = padded(side)
    plan = plan_for(family)
    model = apply_plan(stock(family), plan)
    found = model(ids, attention_mask=mask, use_cache=False).logits
    real = mask.bool()
    torch.testing.assert_close(found[real], by_hand(family, plan, ids, mask)[real], rtol=0, atol=5e-5)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", DISTINCT)
@torch.no_grad()
def test_with_a_cache_it_computes_the_same_in_the_predicted_bytes(family: str, side: str, backend: str) -> None:
    if family in EAGER_ONLY and backend != "eager":
        pytest.skip("this family has no sdpa")
    ids, mask = padded(side)
    model, shape = converted(family), shape_of(stock(family).config)
    model.set_attn_implementation(backend)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache, done, logits = DynamicCache(config=model.config), 0, []
    for length in (3, 4, 1, 1, 4, 1):
        end = done + length
        part = {"input_ids": ids[:, done:end], "position_ids": positions[:, done:end]}
        logits.append(model(**part, attention_mask=mask[:, :end], past_key_values=cache).logits)
        predicted = costs.kv_cache_bytes(model.layer_plan, shape, batch_size=3, length=end, bytes_per_element=4)
        assert uniattn_pl.kv_cache_bytes(cache) == predicted
        done = end
    real = mask.bool()
    torch.testing.assert_close(torch.cat(logits, dim=1)[real], expected[real], rtol=0, atol=5e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(0, 5),
    st.sets(st.integers(0, 5), min_size=1),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
)
@torch.no_grad()
def test_any_window_any_steps_and_any_padding_give_the_same(
    window: int, sinks: int, layers: set[int], steps: list[int], missing: list[int]
) -> None:
    plan = UNMODIFIED.limit_window(sorted(layers), window, sinks, compensated=True)
    model, length = converted("llama", plan), sum(steps)
    ids, mask = tokens(len(missing), length), torch.ones(len(missing), length, dtype=torch.long)
    for row, count in enumerate(missing):
        mask[row, : min(count, length - 1)] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache, done, logits = DynamicCache(config=model.config), 0, []
    for step in steps:
        end = done + step
        part = {"input_ids": ids[:, done:end], "position_ids": positions[:, done:end]}
        logits.append(model(**part, attention_mask=mask[:, :end], past_key_values=cache).logits)
        done = end
    torch.testing.assert_close(torch.cat(logits, dim=1)[mask.bool()], expected[mask.bool()], rtol=0, atol=5e-5)
    predicted = costs.kv_cache_bytes(
        plan, shape_of(model.config), batch_size=len(missing), length=length, bytes_per_element=4
    )
    assert uniattn_pl.kv_cache_bytes(cache) == predicted


@pytest.mark.parametrize(
    "way", [{}, {"prefill_chunk_size": 4}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}]
)
@torch.no_grad()
def test_generation_gives_the_tokens_of_forwards_without_a_cache(way: dict[str, Any]) -> None:
    model = converted("llama")
    prompt, mask = padded("left")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": mask}
    with_cache = model.generate(prompt, **options, **way)
    way.pop("prefill_chunk_size", None)
    assert torch.equal(with_cache, model.generate(prompt, use_cache=False, **options, **way))


@pytest.mark.parametrize("family", FULL_ATTENTION)
@torch.no_grad()
def test_packed_texts_have_sinks_of_their_own(family: str) -> None:
    model, ids = converted(family), tokens(1, 20)
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits
    alone = [model(part, use_cache=False).logits for part in (ids[:, :9], ids[:, 9:])]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=5e-5)


@torch.no_grad()
def test_a_window_of_the_whole_text_changes_nothing() -> None:
    ids = tokens(2, LENGTH)
    model = apply_plan(stock("llama"), UNMODIFIED.limit_window(range(6), LENGTH, compensated=False))
    torch.testing.assert_close(model(ids).logits, stock("llama")(ids).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model, ids = converted("llama"), tokens(2, LENGTH)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.layer_plan == model.layer_plan
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_an_untested_family_is_windowed_after_it_has_been_probed() -> None:
    plan = UNMODIFIED.limit_window([2, 4], WINDOW, SINKS, compensated=False)
    ids = tokens(2, LENGTH)
    found = apply_plan(stock("smollm3"), plan)(ids).logits
    torch.testing.assert_close(found, by_hand("smollm3", plan, ids, torch.ones_like(ids)), rtol=0, atol=5e-5)


def test_checkpointing_gives_the_same_gradients_to_every_weight() -> None:
    ids = tokens(2, LENGTH)
    gradients = []
    for checkpointing in (False, True):
        model = converted("llama").train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])
    assert all(gradient is not None for gradient in gradients[0].values())


def test_what_cannot_be_is_refused() -> None:
    model = converted("llama")
    ids = tokens(1, 8)
    with pytest.raises(NotImplementedError, match="StaticLayer layers cannot serve a plan with windows"):
        model.generate(ids, cache_implementation="static", max_new_tokens=2)
    original = stock("llama")
    original.set_attn_implementation("flex_attention")
    with pytest.raises(UserError, match="a plan with windows needs a kernel that takes masks"):
        apply_plan(original, plan_for("llama"))
