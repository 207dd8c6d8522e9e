"""Whole blocks left out: the stream passes them by, their weights are gone, W_c reads the stream; costs are exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import LAYERS, UNMODIFIED, random_model, stock, tokens, with_random_compensations
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import uniattn_pl
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import apply_plan, converted_copy
from uniattn_pl.plan import LayerPlan, PlanError, costs
from uniattn_pl.plan.drawing import draw
from uniattn_pl.training.callbacks.stage_freezing import freeze_for_stage

FAMILIES = ["llama", "mistral", "gemma2", "phi3", "olmo2", "granite", "qwen3_moe"]
# The bottom block is left out, and a run of two further up that one W_c stands for; a map is read across them.
PLAN = UNMODIFIED.reuse([5], 1, compensated=True).skip([0], compensated=False).replace_run(3, 4)


def converted(family: str, plan: LayerPlan = PLAN) -> PreTrainedModel:
    return with_random_compensations(apply_plan(stock(family), plan))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_is_the_stock_model_without_those_blocks(family: str) -> None:
    """The reference is the family's own decoder over a shorter list of layers, with x + x W in place of the run."""
    plan = UNMODIFIED.skip([0], compensated=False).replace_run(3, 4)
    model, reference = converted(family, plan), stock(family)
    weight = model.model.layers[3].self_attn.w_c.weight

    class Linear(nn.Module):
        def forward(self, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
            return hidden_states + hidden_states @ weight.T

    class Nothing(nn.Module):
        def forward(self, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
            return hidden_states

    for index, layer in {0: Nothing(), 3: Linear(), 4: Nothing()}.items():
        reference.model.layers[index] = layer
    expected = reference(tokens(2, 12), use_cache=False).logits
    torch.testing.assert_close(model(tokens(2, 12)).logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_weights_and_cache_are_as_predicted_and_steps_give_the_logits_of_one_forward(family: str) -> None:
    model = converted(family)
    shape = shape_of(model.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == costs.parameters(PLAN, shape)
    gone = {name for name in stock(family).state_dict() if ".layers.0." in name or ".layers.4." in name}
    kept = set(model.state_dict())
    assert not gone & kept
    assert {name for name in kept if ".layers.3." in name} == {"model.layers.3.self_attn.w_c.weight"}
    ids = tokens(2, 12)
    output = model(ids[:, :11], use_cache=True)
    cached = uniattn_pl.kv_cache_bytes(output.past_key_values)
    assert cached == costs.kv_cache_bytes(PLAN, shape, batch_size=2, length=11, bytes_per_element=4)
    step = model(ids[:, 11:], past_key_values=output.past_key_values).logits
    torch.testing.assert_close(step[:, -1], model(ids, use_cache=False).logits[:, -1], rtol=0, atol=2e-5)
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe"])
@torch.no_grad()
def test_it_is_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = converted(family)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.layer_plan == PLAN
    assert set(loaded.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(loaded(tokens(1, 7)).logits, model(tokens(1, 7)).logits, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_gradients_are_the_same_with_checkpointing_and_none_are_missing(family: str) -> None:
    ids, gradients = tokens(2, 10), []
    for checkpointing in (False, True):
        model = converted(family).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    layers = {name for name in gradients[0] if ".layers.3." in name or ".self_attn." in name}
    assert all(gradients[0][name] is not None for name in layers)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-6)


def test_stage_1_trains_its_w_c() -> None:
    model = converted("llama")
    assert freeze_for_stage(model, 1) == 2 * 32 * 32
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"model.layers.{index}.self_attn.w_c.weight" for index in (3, 5)]


def test_the_stream_is_not_copied_where_nothing_is_added() -> None:
    layer = converted("llama").model.layers[0]
    stream = torch.randn(1, 3, 32)
    assert layer(stream, position_embeddings=None) is stream


@torch.no_grad()
def test_attention_maps_keep_their_places() -> None:
    model = converted("llama")
    model.set_attn_implementation("eager")
    maps = model(tokens(1, 5), output_attentions=True, output_hidden_states=True)
    assert [found is None for found in maps.attentions] == [True, False, False, True, True, False]
    assert len(maps.hidden_states) == LAYERS + 1


def test_an_untested_family_is_probed() -> None:
    model = random_model("granite", residual_multiplier=0.22)
    assert apply_plan(model, PLAN).layer_plan == PLAN


def test_a_family_whose_layers_give_another_form_is_refused() -> None:
    """The top layer gives a tuple, and what follows takes it apart."""
    model = random_model("arcee")
    top = model.model.layers[5]
    stock_kind: Any = type(top)

    class OfTuples(stock_kind):
        def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
            return (super().forward(*args, **kwargs),)

    top.__class__ = OfTuples
    model.model.norm.register_forward_pre_hook(lambda _, args: args[0] if isinstance(args[0], tuple) else args)
    with pytest.raises(UserError, match="do not give the stream in the form they get it"):
        apply_plan(model, UNMODIFIED.skip([5], compensated=False))


def test_costs_of_a_block_are_gone_and_w_c_counts() -> None:
    shape = shape_of(stock("qwen3_moe").config)
    layer, size = shape.layers[3], {"batch_size": 1, "length": 8}
    plain, compensated = (UNMODIFIED.skip([3], compensated=w_c) for w_c in (False, True))
    assert layer.experts is not None
    before, after = (costs.decode_flops(plan, shape, **size) for plan in (UNMODIFIED, plain))
    projections = sum(a * b for a, b in costs.projection_sizes(layer, shape).values())
    routed = layer.experts.per_token * layer.experts.matrices
    pairs = 8 * (layer.heads.query_width + layer.heads.output_width)
    assert before - after == 2 * (projections + routed + layer.feed_forward + pairs)
    assert costs.decode_flops(compensated, shape, **size) - after == 2 * 32 * 32
    moved = [costs.decode_bytes(plan, shape, **size, bytes_per_element=2) for plan in (UNMODIFIED, plain, compensated)]
    of_experts = layer.experts.parameters - round(layer.experts.read(1))
    everything = costs.parameters(UNMODIFIED, shape) - costs.parameters(plain, shape)
    cached = 8 * (layer.heads.key_width + layer.heads.value_width)
    assert (moved[0] - moved[1]) / 2 == pytest.approx(everything - of_experts + cached, abs=1)
    assert moved[2] - moved[1] == 2 * 32 * 32


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_a_w_c_stands_for_the_blocks_behind_it_that_have_none(blocks: set[int], compensated: set[int]) -> None:
    plan = LayerPlan.unmodified(10).skip(blocks, compensated=False).skip(blocks & compensated, compensated=True)
    for index in plan.compensated:
        last = plan.replaced_until(index)
        assert all(plan.rows[i].role == "skip" and not plan.rows[i].compensated for i in range(index + 1, last + 1))
        ends = last == 9 or last + 1 not in blocks or last + 1 in compensated
        assert ends, "nothing that it could stand for is left"
    assert LayerPlan.from_dict(plan.to_dict()) == plan
    lines = draw(plan).splitlines()
    assert sum("block left out" in line for line in lines) == len(blocks)


def test_what_is_gone_does_not_come_back() -> None:
    model = apply_plan(stock("llama"), UNMODIFIED.skip([2], compensated=True).drop([3], compensated=True))
    with pytest.raises(UserError, match="layer 2 is 'skip' already and cannot become 'drop'"):
        apply_plan(converted_copy(model, model.layer_plan), model.layer_plan.drop([2], compensated=False))
    with pytest.raises(UserError, match="layer 3 is 'drop' already and cannot become 'skip'"):
        apply_plan(converted_copy(model, model.layer_plan), model.layer_plan.skip([3], compensated=True))
    further = apply_plan(model, model.layer_plan.skip([3], compensated=False))
    assert not [name for name in further.state_dict() if ".layers.3." in name]
    with pytest.raises(PlanError, match="no layer attends"):
        UNMODIFIED.skip(range(LAYERS), compensated=True).check(shape_of(stock("llama").config))
    with pytest.raises(PlanError, match="layer 4 reads from layer 3, whose attention is dropped"):
        UNMODIFIED.skip([3], compensated=False).share_kv([4], 3, compensated=False)
