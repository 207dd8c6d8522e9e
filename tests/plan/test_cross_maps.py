"""Reuse layers that use the map of their source's cross-attention, too: in files, drawn, counted by hand, refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from uniattn_pl.architectures import get_architecture
from uniattn_pl.plan import CrossAttention, Heads, LayerPlan, LayerShape, ModelShape, PlanError, costs
from uniattn_pl.plan.drawing import draw
from uniattn_pl.plan.forward_memory import calibration_memory
from uniattn_pl.resilience.manifest import Manifest, key_of

HIDDEN, LAYERS, BIASES, NORM = 32, 4, 2 * 24, 32
HEADS = Heads(queries=3, groups=3, size=8, value_size=8)  # of 24 numbers in all
CROSS = CrossAttention(HEADS, 2 * 32 * 24, 2 * 32 * 24, query=32 * 24, key=32 * 24, beside_map=BIASES + NORM)
LAYER = LayerShape(HEADS, *[32 * 24] * 4, feed_forward=100, other=3 * NORM + 4 * 24, cross=CROSS)
ENCODER = ModelShape("bart", HIDDEN, 64, 0, ())
SHAPE = ModelShape("bart", HIDDEN, 64, 64 * HIDDEN, (LAYER,) * LAYERS, encoder=ENCODER)
PLAN = LayerPlan.unmodified(LAYERS).reuse([2, 3], 1, compensated=True)
BOTH = PLAN.reuse_cross_maps([3])


def test_a_plan_comes_back_from_its_file_and_one_without_such_maps_reads_as_ever() -> None:
    assert LayerPlan.from_dict(json.loads(json.dumps(BOTH.to_dict()))) == BOTH
    assert "cross_map" not in json.dumps(PLAN.to_dict())
    damaged = BOTH.to_dict()
    damaged["rows"][-1]["cross_map"] = 1
    with pytest.raises(PlanError, match="cross_map of layer 3 is 1, not true or false"):
        LayerPlan.from_dict(damaged)


def test_it_is_drawn_with_what_is_cached() -> None:
    top, below, *_ = draw(BOTH).splitlines()
    assert re.split(r"\s{2,}", top.strip()) == ["3 ▒ map of 1 and cross map", "+ x W_c", "cache V, cross V"]
    assert re.split(r"\s{2,}", below.strip()) == ["2 ▒ map of 1", "+ x W_c", "cache V"]


def test_what_it_saves_is_counted() -> None:
    saved = costs.parameters(PLAN, SHAPE) - costs.parameters(BOTH, SHAPE)
    assert saved == 2 * 32 * 24 + BIASES + NORM  # W_q and W_k, their biases, the norm before the queries
    sizes = {"batch_size": 2, "length": 5, "source_length": 7}
    kept = [costs.kv_cache_bytes(plan, SHAPE, bytes_per_element=4, **sizes) for plan in (PLAN, BOTH)]
    assert kept[0] - kept[1] == 2 * 4 * 7 * 24  # keys of the source
    step = [costs.decode_flops(plan, SHAPE, **sizes) for plan in (PLAN, BOTH)]
    assert step[0] - step[1] == 2 * 2 * (32 * 24 + 24 * 7)  # W_q, and Q K^T over the source
    prompt = [costs.prefill_flops(plan, SHAPE, batch_size=2, length=7) for plan in (PLAN, BOTH)]
    first = [costs.decode_flops(plan, SHAPE, batch_size=2, length=1, source_length=7) for plan in (PLAN, BOTH)]
    assert prompt[0] - prompt[1] - (first[0] - first[1]) == 2 * 2 * 7 * 32 * 24  # W_k over the source
    of_pass = {"sequences": 3, "batch_size": 1, "length": 5, "element_bytes": 2, "initialiser": "least_squares"}
    streams = [calibration_memory(plan, SHAPE, **of_pass).streams for plan in (PLAN, BOTH)]
    assert streams[1] - streams[0] == 3 * 5 * 2 * (24 + 24)  # queries and keys of the source's cross-attention


def test_what_cannot_be_is_refused_by_its_reason() -> None:
    alone = replace(SHAPE, model_type="llama", encoder=None)
    with pytest.raises(PlanError, match=r"layer 3 .*cross-attention of layer 1; a llama model is a decoder alone"):
        BOTH.check(alone)
    other = replace(LAYER, cross=replace(CROSS, heads=replace(HEADS, queries=6, size=4)))
    with pytest.raises(PlanError, match="choose a source of the same heads"):
        BOTH.check(replace(SHAPE, layers=(LAYER, other, LAYER, LAYER)))
    with pytest.raises(PlanError, match="of layer 1; layer 1 has none"):
        BOTH.check(replace(SHAPE, layers=(LAYER, replace(LAYER, cross=None), LAYER, LAYER)))
    with pytest.raises(PlanError, match=r"layer 1 \(full\) reads no map of another layer"):
        BOTH.reuse_cross_maps([1])
    assert "queries and keys of its cross-attention given up" in BOTH.drop([3], compensated=False).reduces(BOTH)[0]
    assert PLAN.drop([3], compensated=False).reduces(PLAN) == []


@pytest.mark.parametrize(("name", "options"), [("uniattn", {"num_superblocks": 1}), ("shared_attention", {})])
def test_architectures_have_an_option_that_runs_begun_without_it_go_on_under(
    name: str, options: dict[str, int]
) -> None:
    plan = get_architecture(name)(**options).compile(SHAPE)
    both = get_architecture(name)(**options, cross_attention=True).compile(SHAPE)
    assert both == plan.reuse_cross_maps() != plan
    former, now, other = (
        {"architecture": {"name": name, **given}}
        for given in ({}, {"cross_attention": False}, {"cross_attention": True})
    )
    assert Manifest(former).changes(now) == {}
    assert key_of(former) == key_of(now) != key_of(other)


def test_dropped_reuse_layers_keep_their_cross_attention_whole() -> None:
    architecture = get_architecture("uniattn")(num_superblocks=1, dropped_layers=[3], cross_attention=True)
    assert [row.cross_map for row in architecture.compile(SHAPE).rows] == [False, True, True, False]
