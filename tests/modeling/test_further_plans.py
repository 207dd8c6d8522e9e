"""A second plan on a converted model: what it can add, and that nothing given up comes back."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from tests.tiny_models import UNMODIFIED, converted, plan_of, shape, stock, tokens, with_random_compensations
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from uniattn_pl.architectures import UniAttn
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.conversion.convert import apply_plan, drop_attention
from uniattn_pl.plan import LayerPlan, PlanError, costs

IDS = tokens(2, 9)
SOME = pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text", "olmo2"])
REUSE = plan_of("llama", "uniattn")  # layers 2 and 3 reuse the map of layer 1


@torch.no_grad()
def assert_steps_are_one_forward(model: PreTrainedModel, family: str) -> None:
    cache = DynamicCache(config=model.config)
    steps = [model(part, past_key_values=cache, use_cache=True).logits for part in IDS.split([5, 1, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(IDS, use_cache=False).logits, rtol=0, atol=5e-5)
    sizes = {"batch_size": IDS.shape[0], "length": IDS.shape[1], "bytes_per_element": 4}
    assert kv_cache_bytes(cache) == costs.kv_cache_bytes(model.layer_plan, shape(family), **sizes)
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(model.layer_plan, shape(family))


@torch.no_grad()
def assert_same_model(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    """Same plan, same names of weights, and with the same weights the same logits."""
    assert found.layer_plan == expected.layer_plan
    assert found.config.layer_plan == expected.config.layer_plan
    assert list(found.state_dict()) == list(expected.state_dict())
    expected.load_state_dict(found.state_dict())
    assert torch.equal(found(IDS).logits, expected(IDS).logits)


@SOME
@pytest.mark.parametrize("compensated", [True, False])
def test_dropping_afterwards_is_converting_with_dropped_layers(family: str, compensated: bool) -> None:
    options = {"superblock_size": 4, "num_superblocks": 1, "first_layer": 1}
    afterwards = with_random_compensations(apply_plan(stock(family), UniAttn(**options).compile(shape(family))))
    assert drop_attention(afterwards, [2, 4], compensated=compensated) is afterwards
    at_once = UniAttn(**options, dropped_layers=[2, 4], dropped_compensation=compensated).compile(shape(family))
    assert_same_model(afterwards, apply_plan(stock(family), at_once))
    assert_steps_are_one_forward(afterwards, family)


@SOME
def test_dropping_twice_is_dropping_once(family: str) -> None:
    twice = drop_attention(drop_attention(converted(family, "uniattn"), [2]), [3, 5])
    once = drop_attention(converted(family, "uniattn"), [5, 3, 2])
    assert_same_model(twice, once)
    assert_steps_are_one_forward(twice, family)


# Each has a layer that becomes a source, or a source of a second kind, only now.
SECOND_PLANS: dict[str, Callable[[LayerPlan], LayerPlan]] = {
    "new source of keys": lambda plan: plan.share_kv([5], 4, compensated=True),
    "source of a map gives keys as well": lambda plan: plan.share_kv([4, 5], 1, compensated=True),
    "new source of a map": lambda plan: plan.reuse([5], 4, compensated=True),
    "one more reader": lambda plan: plan.reuse([5], 1, compensated=True),
    "share and drop": lambda plan: plan.share_kv([5], 1, compensated=False).drop([3, 4], compensated=False),
}


@pytest.mark.parametrize(("family", "name"), list(product(["llama", "phi3", "gemma3_text"], SECOND_PLANS)))
def test_a_second_plan_is_its_result_at_once(family: str, name: str, tmp_path: Path) -> None:
    plan = SECOND_PLANS[name](plan_of(family, "uniattn"))
    model = converted(family, "uniattn")
    model(IDS)  # converted and in use
    further = with_random_compensations(apply_plan(model, plan))
    assert_same_model(further, apply_plan(stock(family), plan))
    assert_steps_are_one_forward(further, family)
    further.save_pretrained(tmp_path)
    assert_same_model(AutoModelForCausalLM.from_pretrained(tmp_path), further)


def test_a_compensation_keeps_its_weights_through_a_second_plan() -> None:
    model = converted("llama", "uniattn")
    trained = {i: model.model.layers[i].self_attn.w_c.weight.clone() for i in (2, 3)}
    drop_attention(apply_plan(model, REUSE.share_kv([5], 4, compensated=True)), [3], compensated=True)
    for index, weight in trained.items():
        assert torch.equal(model.model.layers[index].self_attn.w_c.weight, weight)
    assert not model.model.layers[5].self_attn.w_c.weight.any()


@pytest.mark.parametrize(("architecture", "layers"), [("uniattn", [1]), ("cla", [1, 3]), ("mixed", [0, 1])])
def test_a_source_that_others_read_is_not_dropped(architecture: str, layers: list[int]) -> None:
    model = converted("llama", architecture)
    before = model(IDS).logits
    for layer in layers:
        with pytest.raises(PlanError, match=f"reads from layer {layer}, whose attention is dropped"):
            drop_attention(model, [layer])
    assert model.layer_plan == plan_of("llama", architecture)
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize(
    ("plan", "problems"),
    [
        (UNMODIFIED, ["layer 2 is 'reuse' already and cannot become 'full', nor 1 more layer what the plan says"]),
        (REUSE.share_kv([3], 1, compensated=True), ["layer 3 is 'reuse' already and cannot become 'share_kv'"]),
        (REUSE.reuse([3], 0, compensated=True), ["layer 3 is 'reuse' already and cannot become 'reuse'"]),
        (REUSE.reuse([3], 1, compensated=False), ["layer 3 is 'reuse' already and cannot become 'reuse'"]),
        (REUSE.place_compensation(input="value", output="heads"), ["layer 2 is 'reuse'", "nor 1 more layer"]),
        (LayerPlan.unmodified(7).drop([2, 3], compensated=False), ["the plan has 7 layers, the model 6"]),
    ],
    ids=["full", "share_kv", "another source", "without its compensation", "another placement", "another depth"],
)
def test_what_a_layer_gave_up_does_not_come_back(plan: LayerPlan, problems: list[str]) -> None:
    model = converted("llama", "uniattn")
    with pytest.raises(UserError, match="this model already has a layer plan") as refusal:
        apply_plan(model, plan)
    assert all(problem in str(refusal.value) for problem in problems)
    assert len(refusal.value.problems) == 1, "one line, however many layers"
    assert model.layer_plan == REUSE


@pytest.mark.parametrize("architecture", ["llmdrop", "cla", "uniattn"])
def test_a_layer_dropped_without_its_compensation_gets_none(architecture: str) -> None:
    last = plan_of("llama", architecture).operated[-1]
    model = drop_attention(converted("llama", architecture), [last])
    with pytest.raises(UserError, match=f"layer {last} is 'drop' already and cannot become 'drop'"):
        drop_attention(model, [last], compensated=True)


@pytest.mark.parametrize(
    ("reads", "adds", "problem"),
    [
        ("value", "attention_output", "its W_c can only read attention_input"),
        ("heads", "attention_output", "its W_c can only read attention_input"),
        ("value", "layer_output", "its W_c can only read attention_input"),
        ("attention_input", "heads", "not add to heads"),
    ],
)
def test_a_compensation_that_needs_attention_does_not_outlive_it(reads: str, adds: str, problem: str) -> None:
    plan = REUSE.place_compensation(input=reads, output=adds)
    model = with_random_compensations(apply_plan(stock("llama"), plan))
    with pytest.raises(PlanError, match=re.escape("layer 3 is dropped") + f".*{problem}"):
        drop_attention(model, [3], compensated=True)
    assert model.layer_plan == plan
    assert_steps_are_one_forward(model, "llama")
    drop_attention(model, [3], compensated=False)
    assert not model.layer_plan.rows[3].compensated
    assert_same_model(model, apply_plan(stock("llama"), plan.drop([3], compensated=False)))
    assert_steps_are_one_forward(model, "llama")


@torch.no_grad()
def test_a_late_compensation_outlives_its_attention() -> None:
    plan = REUSE.place_compensation(input="attention_input", output="layer_output")
    model = with_random_compensations(apply_plan(stock("llama"), plan))
    drop_attention(model, [3], compensated=True)
    assert model.layer_plan.rows[3].compensation.output == "layer_output"
    assert_same_model(model, apply_plan(stock("llama"), plan.drop([3], compensated=True)))
    compensated = model(IDS).logits
    model.model.layers[3].self_attn.w_c.weight.zero_()
    assert not torch.allclose(model(IDS).logits, compensated, atol=1e-3)
