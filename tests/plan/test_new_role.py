"""A role that nobody has thought of is one entry in the table and one attention: everything else follows from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import LAYERS, stock, tokens, with_random_compensations
from transformers import AutoModelForCausalLM

import uniattn_pl
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.attention.operate import ATTENTIONS
from uniattn_pl.modeling.attention.operated import OperatedAttention
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import ROLES, LayerPlan, PlanError, Role, costs
from uniattn_pl.plan.changes import Change, possible_changes
from uniattn_pl.plan.drawing import draw

FAMILIES = ["llama", "qwen3", "phi3", "gemma2"]
OWN_VALUE = Role(
    summary="every token attends to itself alone",
    projections=frozenset({"value", "output"}),
    products=0,
    caches=frozenset(),
    reads=None,
    gives=frozenset(),
    symbol="o",
    label="own value",
    becomes="attend to the token itself alone",
)


class OwnValueAttention(OperatedAttention):
    """The output for a token is its own value, so nothing is cached."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        value = self.projection("v_proj")(hidden_states)  # [B, L, Hkv * D]
        per_head = value.unflatten(-1, (-1, self.value_head_dim))  # [B, L, Hkv, D]
        groups = self.o_proj.in_features // value.shape[-1]
        heads = per_head.repeat_interleave(groups, dim=2).flatten(2)  # [B, L, H * D]
        return self.finish(heads, value, hidden_states, kwargs), None


@pytest.fixture(autouse=True)
def new_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one entry and the one attention."""
    monkeypatch.setitem(ROLES, "own_value", OWN_VALUE)
    monkeypatch.setitem(ATTENTIONS, "own_value", OwnValueAttention)


@pytest.fixture
def plan() -> LayerPlan:
    """Two such layers, one with a W_c that reads its values, beside a layer that reuses a map."""
    plan = LayerPlan.unmodified(LAYERS).assign([2], "own_value", compensated=True).assign([4], "own_value")
    return plan.place_compensation(input="value", output="attention_output").reuse([3], 1, compensated=True)


def test_costs_follow_from_the_entry(plan: LayerPlan) -> None:
    shape = shape_of(stock("llama").config)
    per_layer = shape.layers[0].heads.key_width * 4  # bytes per token of K or V in float32
    cached = costs.kv_cache_bytes(plan, shape, batch_size=1, length=10, bytes_per_element=4)
    assert cached == 10 * per_layer * (2 * 3 + 1), "three full layers and the values of one"
    alone = LayerPlan.unmodified(LAYERS).assign([1], "own_value")
    dropped = LayerPlan.unmodified(LAYERS).drop([1], compensated=False)
    difference = costs.decode_flops(alone, shape, batch_size=1, length=10) - costs.decode_flops(
        dropped, shape, batch_size=1, length=10
    )
    heads = shape.layers[0].heads
    values_and_output = shape.hidden_size * (heads.value_width + heads.output_width)
    assert difference == 2 * values_and_output


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_model_of_it_has_the_predicted_parameters_and_cache_and_decodes_as_without_cache(
    family: str, plan: LayerPlan
) -> None:
    original = stock(family)
    shape = shape_of(original.config)
    model = with_random_compensations(apply_plan(original, plan))
    assert sum(parameter.numel() for parameter in model.parameters()) == costs.parameters(plan, shape)
    ids = tokens(2, 12)
    output = model(ids[:, :11], use_cache=True)
    cached = uniattn_pl.kv_cache_bytes(output.past_key_values)
    assert cached == costs.kv_cache_bytes(plan, shape, batch_size=2, length=11, bytes_per_element=4)
    step = model(ids[:, 11:], past_key_values=output.past_key_values).logits
    torch.testing.assert_close(step[:, -1], model(ids, use_cache=False).logits[:, -1], rtol=0, atol=2e-5)


@torch.no_grad()
def test_it_computes_what_its_attention_says(plan: LayerPlan) -> None:
    model = with_random_compensations(apply_plan(stock("llama"), plan))
    attention = model.model.layers[2].self_attn
    hidden = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    value = attention.v_proj(hidden)  # [1, 3, 2 * 8]
    heads = torch.cat([value[..., :8], value[..., :8], value[..., 8:], value[..., 8:]], dim=-1)
    output, attention_map = attention(hidden)
    torch.testing.assert_close(output, attention.o_proj(heads) + attention.w_c(value), rtol=0, atol=1e-6)
    assert attention_map is None


@pytest.mark.parametrize(
    ("projections", "modules"),
    [({"value", "output"}, {"qkv_proj": "v"}), ({"key", "value", "output"}, {"k_proj": "k", "v_proj": "v"})],
)
def test_of_a_fused_projection_a_role_keeps_the_rows_it_names(
    projections: set[str], modules: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROLES, "own_value", replace(OWN_VALUE, projections=frozenset(projections)))
    original = stock("phi3")
    fused = original.model.layers[2].self_attn.qkv_proj.weight.detach().clone()
    spans = {"k": slice(32, 48), "v": slice(48, 64)}  # behind 4 heads of 8 queries, 2 of keys, 2 of values
    attention = apply_plan(original, LayerPlan.unmodified(LAYERS).assign([2], "own_value")).model.layers[2].self_attn
    assert {name for name, _ in attention.named_children()} == {*modules, "o_proj"}
    for name, part in modules.items():
        assert torch.equal(attention.get_submodule(name).weight, fused[spans[part]])


@torch.no_grad()
def test_it_is_saved_and_loaded(plan: LayerPlan, tmp_path: Path) -> None:
    model = with_random_compensations(apply_plan(stock("llama"), plan))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.layer_plan == plan
    torch.testing.assert_close(loaded(tokens(1, 7)).logits, model(tokens(1, 7)).logits, rtol=0, atol=0)


def test_it_is_drawn_and_checked_by_its_entry(plan: LayerPlan) -> None:
    lines = {line.split()[0]: line for line in draw(plan).splitlines()}
    assert lines["4"].split() == ["4", "o", "own", "value", "cache", "-"]
    assert "+ V W_c" in lines["2"]
    with pytest.raises(PlanError, match="layer 5 reuses the map of layer 4, which computes none"):
        plan.reuse([5], 4, compensated=False)


def test_a_search_can_choose_it() -> None:
    shape = shape_of(stock("llama").config)
    changes = possible_changes(LayerPlan.unmodified(LAYERS), shape, ["own_value"], compensated=True)
    assert set(changes) == {Change(layer, "own_value") for layer in range(LAYERS)}
    assert all(changed.compensated == (change.layer,) for change, changed in changes.items())
