"""Values whose heads have another size than keys (MiMo-V2-Flash), and layers whose heads differ in number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.shapes import toy_shape
from tests.tiny_models import (
    ARCHITECTURES,
    MODES,
    SIZES,
    SPECIAL,
    UNMODIFIED,
    converted,
    plan_of,
    shape,
    stock,
    tokens,
    with_random_compensations,
)
from transformers import AutoModelForCausalLM, DynamicCache, MiMoV2FlashConfig

from uniattn_pl.calibration.streaming import calibrate
from uniattn_pl.families.attention_parts import heads_of
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.conversion.convert import apply_plan, converted_copy, unmodified_copy
from uniattn_pl.plan import Heads, LayerPlan, PlanError, costs

FAMILY = "mimo_v2_flash"
HEADS = Heads(4, 2, 8, 4)
IDS = tokens(2, 12)


def predicted(plan: LayerPlan, length: int = 12) -> int:
    return costs.kv_cache_bytes(plan, shape(FAMILY), batch_size=2, length=length, bytes_per_element=4)


def test_the_shape_knows_both_sizes() -> None:
    assert {layer.heads for layer in shape(FAMILY).layers} == {HEADS}
    # keys of 2 heads of 8, values of 2 heads of 4, in 4 bytes
    assert predicted(UNMODIFIED) == 2 * 12 * 6 * (16 + 8) * 4


@torch.no_grad()
def test_stock_and_unmodified_models_hold_the_predicted_bytes() -> None:
    model = stock(FAMILY)
    for subject in (model, unmodified_copy(model)):
        assert kv_cache_bytes(subject(IDS, use_cache=True).past_key_values) == predicted(UNMODIFIED)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_steps_give_the_logits_of_one_forward(architecture: str, mode: str) -> None:
    model, plan = converted(FAMILY, architecture, mode), plan_of(FAMILY, architecture)
    cache = DynamicCache(config=model.config)
    steps = [model(part, past_key_values=cache, use_cache=True).logits for part in IDS.split([7, 1, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(IDS, use_cache=False).logits, rtol=0, atol=5e-5)
    assert kv_cache_bytes(cache) == predicted(plan)
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(plan, shape(FAMILY))


@torch.no_grad()
def test_reuse_of_an_equal_map_loses_nothing() -> None:
    """Layer 4 is given the map of layer 3: its queries and keys, and a layer 3 that adds nothing to the stream."""
    model: Any = stock(FAMILY)
    layers = model.model.layers
    for name in ("self_attn.q_proj", "self_attn.k_proj", "input_layernorm"):
        layers[4].get_submodule(name).load_state_dict(layers[3].get_submodule(name).state_dict())
    layers[3].self_attn.o_proj.weight.zero_()
    layers[3].mlp.experts.down_proj.zero_()
    expected = model(IDS).logits
    apply_plan(model, UNMODIFIED.reuse([4], 3, compensated=False))
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("places", [("value", "heads"), ("heads", "attention_output"), ("attention_input", "heads")])
def test_a_compensation_fits_wherever_it_is_placed(places: tuple[str, str]) -> None:
    plan = UNMODIFIED.reuse([3, 4], 2, compensated=True).place_compensation(input=places[0], output=places[1])
    model = with_random_compensations(apply_plan(stock(FAMILY), plan))
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(plan, shape(FAMILY))
    model(IDS, labels=IDS).loss.backward()


def test_calibration_aligns_heads_and_repairs() -> None:
    model = stock(FAMILY)
    twin = converted_copy(model, UNMODIFIED.reuse([4, 5], 3, compensated=True))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens(24, 16).split(8)]
    report = calibrate(model, twin, batches, batches, head_alignment="output_error")
    assert report.error_after < report.error_before
    assert all(row.heads_from is not None for row in twin.layer_plan.rows[4:])  # type: ignore[union-attr]


@torch.no_grad()
def test_layers_of_one_model_have_their_own_heads() -> None:
    """As published: windowed layers have twice the heads of keys and values (and sinks: they are read by none)."""
    options = SIZES | SPECIAL[FAMILY] | {"layer_types": ["full_attention", "sliding_attention"] * 3}
    model = AutoModelForCausalLM.from_config(MiMoV2FlashConfig(**options | {"sliding_window": 6})).eval()
    heads = [heads_of(layer.self_attn) for layer in model.model.layers]
    assert heads == [HEADS, replace(HEADS, groups=4)] * 3
    layers = [replace(layer, heads=own) for layer, own in zip(toy_shape(6, [None, 6] * 3).layers, heads, strict=True)]
    mixed = replace(toy_shape(6), layers=tuple(layers))
    expected = costs.kv_cache_bytes(UNMODIFIED, mixed, batch_size=2, length=12, bytes_per_element=4)
    assert kv_cache_bytes(model(IDS, use_cache=True).past_key_values) == expected


def test_a_layer_does_not_read_from_one_of_other_heads() -> None:
    layers = [replace(layer, heads=own) for layer, own in zip(toy_shape(2).layers, (HEADS, HEADS), strict=True)]

    def check(plan: LayerPlan, **other: int) -> None:
        plan.check(replace(toy_shape(2), layers=(layers[0], replace(layers[1], heads=replace(HEADS, **other)))))

    reuse = LayerPlan.unmodified(2).reuse([1], 0, compensated=False)
    share = LayerPlan.unmodified(2).share_kv([1], 0, compensated=False)
    check(reuse, value_size=8)  # its own values under another's map
    with pytest.raises(PlanError, match=r"layer 1 has 4 heads over 2 of size 8, but its source, layer 0, 4 heads over"):
        check(share, value_size=8)
    for plan in (reuse, share):
        check(plan)
        for other in ({"groups": 4}, {"size": 4}, {"queries": 2}):
            with pytest.raises(PlanError, match=r"layer 1 has .* choose one of the same heads"):
                check(plan, **other)
